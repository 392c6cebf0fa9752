"""What a study found as pictures: quality over x, paired differences, speed and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from moge_bench.publish.captions import Captions
from moge_bench.publish.design import Design, Panel, colour, dodge
from moge_bench.publish.layout import key_label
from moge_bench.publish.numbers import Number, Shown
from moge_bench.publish.panels import (
    PANELS,
    ROWS,
    WIDTH,
    finish,
    frame,
    label_edges,
    method_handles,
    pages,
)
from moge_bench.study.contrasts import Sample
from moge_bench.study.frame import Arm, Results

_BETTER = {"higher": "\nhigher is better", "lower": "\nlower is better", None: ""}
_BESIDE = 0.07  # from an interval to the dots of its seeds
_DOT = "A small dot is a seed, a ring their mean, a bar its interval."


def _first_quality(numbers: list[Shown]) -> list[Shown]:
    """Return the first metric of quality, on every split that it is shown on."""
    quality = [each for each in numbers if each.metric.kind == "quality"]
    return [each for each in quality if each.metric.name == quality[0].metric.name]


def draw_quality(plan: Design, numbers: list[Shown], captions: Captions) -> Iterator[Figure]:
    """Yield the first metric of quality over x: a dot a seed, the mean and its interval."""
    shown = _first_quality(numbers)
    panels = [(each, panel) for panel in plan.panels for each in shown]
    for part, said in pages(panels, PANELS):
        figure, axes = frame(len(part))
        for place, (each, panel) in zip(axes, part, strict=True):
            _draw_panel(place, plan, each, panel)
            split = each.split.replace("_", " ") if len(shown) > 1 else ""
            place.set_title(", ".join(text for text in (panel.title, split) if text))
        first = shown[0]
        heading = first.heading if len(shown) == 1 else first.metric.heading
        label_edges(axes, plan.x_title, heading + _BETTER[first.metric.better])
        note = f"{_DOT} {captions.value(first)} {said} {captions.tail('figures')}"
        handles = method_handles(plan.methods) if plan.x != "method" else ()
        yield finish(figure, captions.question, [handles], note)


def _draw_panel(axes: Axes, plan: Design, shown: Shown, panel: Panel) -> None:
    axes.set_xticks([at for at, _ in plan.ticks], [text for _, text in plan.ticks])
    low, high = plan.ticks[0][0], plan.ticks[-1][0]
    axes.set_xlim(low - 0.45, high + 0.45)
    axes.grid(visible=False, axis="x")
    lines: dict[str, list[tuple[float, float]]] = {}
    for place in panel.places:
        number = shown.numbers[place.arm.entry.arm_id]
        if number.sample is None:
            continue
        at = place.x + (0.0 if place.everywhere else dodge(plan, place.arm.method))
        _draw_values(axes, at, number, colour(place.arm))
        if place.everywhere:
            axes.axhline(number.sample.mean, color=colour(place.arm), linestyle=":", linewidth=1)
        else:
            lines.setdefault(place.arm.method, []).append((at, number.sample.mean))
    for method, points in lines.items():
        if plan.numeric and len(points) > 1:
            arm = next(p.arm for p in panel.places if p.arm.method == method)
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, color=colour(arm), linewidth=1.2, alpha=0.7)


def _draw_values(axes: Axes, at: float, number: Number, hue: str) -> None:
    assert number.sample is not None
    values = list(number.values.values())
    axes.plot(
        [at + _BESIDE] * len(values),
        values,
        ".",
        color=hue,
        alpha=0.55,
        markersize=6,
        markeredgewidth=0,
    )
    _bar(axes, number.sample, at, hue, vertical=True)


def _bar(axes: Axes, sample: Sample, at: float, hue: str, *, vertical: bool) -> None:
    error = None
    if sample.low is not None and sample.high is not None:
        error = [[sample.mean - sample.low], [sample.high - sample.mean]]
    x, y = (at, sample.mean) if vertical else (sample.mean, at)
    axes.errorbar(
        x, y, error if vertical else None, None if vertical else error, fmt="o",
        color=hue, markersize=6, markerfacecolor="white", markeredgewidth=1.6, capsize=3,
        linewidth=1.3,
    )  # fmt: skip


def arm_name(results: Results, arm: Arm) -> str:
    """Return the arm for a figure's row: its method first."""
    table = results.study.table
    axes = sorted((*table.rows, *table.columns), key=lambda axis: axis != "method")
    return key_label(axes, tuple(str(arm.shown[axis]) for axis in axes))


def draw_differences(
    results: Results, numbers: list[Shown], captions: Captions
) -> Iterator[Figure]:
    """Yield a row a comparison: each seed's difference from the baseline, the mean, its interval.

    Filled marks survive Holm's correction.
    """
    shown = _first_quality(numbers)
    arms = [
        arm for arm in results.arms
        if any(each.numbers[arm.entry.arm_id].difference is not None for each in shown)
    ]  # fmt: skip
    for part, said in pages(arms, ROWS):
        tall = 0.27 * len(part) + 0.8
        figure, axes = frame(len(shown), tall, tall, columns=2)
        for panel, each in zip(axes, shown, strict=True):
            _draw_difference_panel(panel, results, each, part)
            if len(shown) > 1:
                panel.set_title(each.split.replace("_", " "))
        first = shown[0]
        heading = first.title if len(shown) == 1 else first.metric.title
        unit = f" ({first.difference_unit})" if first.difference_unit else ""
        label_edges(axes, f"difference in {heading}{unit}{_BETTER[first.metric.better]}", "", 2)
        note = f"{_DOT} {captions.difference(first)} {said} {captions.tail('figures')}"
        methods = tuple(dict.fromkeys(arm.method for arm in part))
        yield finish(figure, captions.question, [method_handles(methods)], note)


def _draw_difference_panel(axes: Axes, results: Results, shown: Shown, arms: Sequence[Arm]) -> None:
    axes.axvline(0.0, color="black", linewidth=1)
    for row, arm in enumerate(arms):
        number = shown.numbers[arm.entry.arm_id]
        if number.contrast is None or number.difference is None:
            continue
        values = list(number.contrast.values.values())
        axes.plot(
            values, [row + 0.22] * len(values), ".", color=colour(arm), alpha=0.55, markersize=6,
            markeredgewidth=0,
        )  # fmt: skip
        _bar(axes, number.difference, row, colour(arm), vertical=False)
        if number.kept:
            axes.plot(number.difference.mean, row, "o", color=colour(arm), markersize=6)
    axes.set_yticks(range(len(arms)), [_versus(results, arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _versus(results: Results, arm: Arm) -> str:
    other = results.baselines[arm.entry.arm_id]
    against = other.method if "method" in results.study.axes else other.label
    return f"{arm_name(results, arm)} - {against}"


def draw_cost(results: Results, numbers: list[Shown], captions: Captions) -> Iterator[Figure]:
    """Yield speed and memory of every timed arm, a row an arm: median and quartiles, or exact."""
    shown = [each for each in numbers if each.metric.source == "speed"][:3]
    arms = [arm for arm in results.arms if arm.speed is not None]
    for part, said in pages(arms, ROWS) if shown else ():
        figure = Figure(figsize=(WIDTH, 0.26 * len(part) + 1.0))
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for panel, each in zip(axes, shown, strict=True):
            for row, arm in enumerate(part):
                _draw_cost(panel, each.numbers[arm.entry.arm_id], row)
            heading = each.heading.replace(" (", "\n(")
            panel.set_xlabel(heading + _BETTER[each.metric.better])
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(3))
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            panel.grid(visible=False, axis="y")
        axes[0].set_yticks(range(len(part)), [arm_name(results, arm) for arm in part])
        axes[0].set_ylim(len(part) - 0.4, -0.6)
        kinds = dict.fromkeys(
            f"{each.metric.kind.capitalize()}: {captions.value(each)}" for each in shown
        )
        note = f"{' '.join(kinds)} {said} {captions.tail('figures')}"
        yield finish(figure, captions.question, [], note)


def _draw_cost(axes: Axes, number: Number, row: int) -> None:
    if number.sample is None:
        return
    hue, value = colour(number.arm), number.sample.mean
    axes.plot([0, value], [row, row], color=hue, alpha=0.3, linewidth=4, solid_capstyle="butt")
    axes.plot(value, row, "o", color=hue, markersize=5)
    if number.quartiles is not None:
        axes.plot([number.quartiles.lower, number.quartiles.upper], [row, row], color=hue)
