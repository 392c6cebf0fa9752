"""Figures over a numeric axis: the difference at each value; the metric where none is declared.

Under the panel, on the same x, what the loss did to the router (beside.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moge_bench.publish import beside
from moge_bench.publish.captions import Captions
from moge_bench.publish.comparisons import (
    Comparison,
    along,
    bounds,
    by_series,
    headline,
    numbers_of_seeds,
    same_number,
)
from moge_bench.publish.design import Design, Panel, colour, dodge
from moge_bench.publish.marks import BAND, BAND_ALPHA, DOT, band_handle, bar, declared_handle, dots
from moge_bench.publish.numbers import Number, Shown
from moge_bench.publish.panels import BETTER, INK, finish, method_handles, pages, stack
from moge_bench.publish.sentences import margin
from moge_bench.study.answer import Answer
from moge_bench.study.contrasts import Scale
from moge_bench.study.declared import STEPS, DeclaredContrast
from moge_bench.study.estimate import Estimate

_ACROSS = 3  # panels
_HEIGHT, _LOW = 2.7, 1.15  # inches, of the panel and of those under it
_APART = 0.09  # from an interval to the dots of its seeds


def draw_trend(
    plan: Design, answer: Answer, shown: Shown, under: Sequence[Shown], captions: Captions
) -> Iterator[Figure]:
    """Yield the differences in ``shown`` over x, with the margin, and ``under`` below them."""
    assert answer.primary is not None
    declared = answer.primary.found.declared
    found = along(answer, shown, plan.x)
    for part, said in pages(plan.panels, _ACROSS):
        figure, rows = stack(len(part), [_HEIGHT, *[_LOW] * len(under)])
        for column, panel in enumerate(part):
            axes = rows[0][column]
            axes.grid(visible=False, axis="x")
            _draw_differences(axes, plan, panel, found)
            _draw_margin(axes, plan, answer, shown)
            if declared.axis == plan.x:
                _draw_baseline(axes, plan, declared)
            axes.set_title(panel.title)
        unit = f" ({shown.difference_unit})" if shown.difference_unit else ""
        rows[0][0].set_ylabel(f"difference in\n{shown.title}{unit}{BETTER[shown.metric.better]}")
        _draw_under(rows, plan, part, under)
        note = f"{DOT} Filled: the primary contrast. {_margin_note(answer)} "
        note += f"n = {numbers_of_seeds(found.values())} seeds."
        note = f"{note} {beside.note(under)} {said} {captions.tail('figures')}"
        drawn = {each.arm.method for each in found.values()}
        rest = [name for name in plan.methods if name not in drawn] if under else []
        handles = [[*_handles(found, answer), *method_handles(rest)]]
        yield finish(figure, captions.question, handles, note, headline(answer))


def draw_values(
    plan: Design, answer: Answer, shown: Sequence[Shown], under: Sequence[Shown],
    captions: Captions,
) -> Iterator[Figure]:  # fmt: skip
    """Yield the metric itself over x, a panel a split: a study that declares nothing."""
    panels = [(each, panel) for panel in plan.panels for each in shown]
    for part, said in pages(panels, _ACROSS):
        figure, rows = stack(len(part), [_HEIGHT, *[_LOW] * len(under)])
        for axes, (each, panel) in zip(rows[0], part, strict=True):
            _draw_metric(axes, plan, panel, each)
            split = each.split.replace("_", " ") if len(shown) > 1 else ""
            axes.set_title(", ".join(text for text in (panel.title, split) if text))
        first = shown[0]
        heading = first.heading if len(shown) == 1 else first.metric.heading
        rows[0][0].set_ylabel(heading + BETTER[first.metric.better])
        _draw_under(rows, plan, [panel for _, panel in part], under)
        best = f" Filled: the best mean of each method{' in its panel' if len(part) > 1 else ''}."
        best = best if first.metric.better else ""
        note = f"{DOT}{best} {captions.value(first)} {beside.note(under)} {said}"
        handles = method_handles(plan.methods) if plan.x != "method" else ()
        yield finish(
            figure, captions.question, [handles], f"{note} {captions.tail('figures')}",
            headline(answer),
        )  # fmt: skip


def _prepare(axes: Axes, plan: Design) -> None:
    axes.set_xticks([at for at, _ in plan.ticks], [_short(text) for _, text in plan.ticks])
    axes.set_xlim(plan.ticks[0][0] - 0.45, plan.ticks[-1][0] + 0.45)
    axes.grid(visible=False, axis="x")


def _short(text: str) -> str:
    """Return "100" for "100.0": how a study file may write a value."""
    return text.removesuffix(".0")


def _draw_under(
    rows: Sequence[Sequence[Axes]], plan: Design, panels: Sequence[Panel], under: Sequence[Shown]
) -> None:
    for row, shown in zip(rows[1:], under, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            beside.draw_over_x(axes, plan, panel, shown)
        for axes in row[1:]:
            axes.set_ylabel("")
    for axes in rows[-1]:
        _prepare(axes, plan)
        axes.set_xlabel(plan.x_title)


def _draw_differences(
    axes: Axes, plan: Design, panel: Panel, found: Mapping[str, Comparison]
) -> None:
    axes.axhline(0.0, color=INK, linewidth=1)
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for place in panel.places:
        each = found.get(place.arm.entry.arm_id)
        if each is None or each.contrast is None:
            continue
        at = place.x + (0.0 if place.everywhere else dodge(plan, place.arm.method))
        hue, sample = colour(place.arm), each.contrast.sample
        dots(axes, list(each.contrast.values.values()), at + _APART, hue)
        bar(axes, sample, at, hue, filled=each.kind == "primary")
        if not place.everywhere:
            lines.setdefault(each.series, []).append((at, sample.mean, hue))
    for points in lines.values():
        points.sort()
        axes.plot(
            [x for x, *_ in points], [y for _, y, _ in points], color=points[0][2],
            linewidth=1.0, alpha=0.5,
        )  # fmt: skip


def _draw_metric(axes: Axes, plan: Design, panel: Panel, shown: Shown) -> None:
    _prepare(axes, plan)
    lines: dict[str, list[tuple[float, float, Number]]] = {}
    for place in panel.places:
        number = shown.numbers[place.arm.entry.arm_id]
        if number.sample is None:
            continue
        at = place.x + (0.0 if place.everywhere else dodge(plan, place.arm.method))
        dots(axes, list(number.values.values()), at + _APART, colour(place.arm))
        if place.everywhere:
            axes.axhline(number.sample.mean, color=colour(place.arm), linestyle=":", linewidth=1)
        lines.setdefault(place.arm.method, []).append((at, number.sample.mean, number))
    choose = {"higher": max, "lower": min}.get(shown.metric.better or "")
    for points in lines.values():
        best = choose(points, key=lambda point: point[1])[0] if choose else None
        for at, _, number in points:
            assert number.sample is not None
            filled = at == best and len(points) > 1
            bar(axes, number.sample, at, colour(number.arm), filled=filled)
        if plan.numeric and len(points) > 1:
            points.sort(key=lambda point: point[0])
            xs, ys = [x for x, *_ in points], [y for _, y, _ in points]
            axes.plot(xs, ys, color=colour(points[0][2].arm), linewidth=1.2, alpha=0.7)


def _draw_baseline(axes: Axes, plan: Design, declared: DeclaredContrast) -> None:
    """Mark the value that the others are compared with."""
    for at, text in plan.ticks:
        if text == str(declared.contrast[1]):
            axes.plot(at, 0.0, "s", color=INK, markersize=5)


def _draw_margin(axes: Axes, plan: Design, answer: Answer, shown: Shown) -> None:
    """Shade the primary contrast's margin: a band, or of a slope a fan, with the fitted line."""
    assert answer.primary is not None and same_number(answer.primary, shown)
    found = answer.primary.found
    declared = found.declared
    low, high = bounds(declared)
    if not _is_slope(declared):
        axes.axhspan(low, high, color=BAND, alpha=BAND_ALPHA, linewidth=0, zorder=0)
        return
    line = _line(found)
    if line is None or declared.over != plan.x:
        return
    slope, centre, height, step, scale = line
    ticks = [(at, text) for at, text in plan.ticks if at >= 0]
    at = [each for each, _ in ticks]
    moved = [step(float(text)) - centre for _, text in ticks]
    least, most = (
        [scale.told(height + scale.inner(bound) * m) for m in moved] for bound in (low, high)
    )
    axes.fill_between(at, least, most, color=BAND, alpha=BAND_ALPHA, linewidth=0, zorder=0)
    axes.plot(at, [scale.told(height + slope * m) for m in moved], "--", color=INK, linewidth=1.2)


def _is_slope(declared: DeclaredContrast) -> bool:
    return declared.over is not None and declared.between is None


_Line = tuple[float, float, float, Callable[[float], float], Scale]


def _line(found: Estimate) -> _Line | None:
    """Return slope, centre and height of the fitted line, x's function, and the contrast's scale.

    Least squares through the seeds' differences: it goes through their mean at the mean of x.
    """
    declared = found.declared
    (_, step), scale = STEPS[declared.scale], Scale(declared.number.compared == "ratio")
    cells = [cell for cell in found.entered if found.differences]
    if found.contrast is None or not cells:
        return None
    height = fmean(cell.differences[seed] for cell in cells for seed in found.differences)
    slope = fmean(found.differences.values())
    return slope, fmean(step(cell.pair.level) for cell in cells), height, step, scale


def _margin_note(answer: Answer) -> str:
    assert answer.primary is not None
    declared = answer.primary.found.declared
    if _is_slope(declared):
        return (
            f"Dashed: the fitted slope; shaded: slopes within the margin of {margin(declared)}, "
            "through its middle."
        )
    return f"Shaded: the margin of {margin(declared)}."


def _handles(found: Mapping[str, Comparison], answer: Answer) -> list[Any]:
    assert answer.primary is not None
    series: list[Any] = [
        Line2D([], [], color=colour(group[0].arm), marker="o", linewidth=2, label=name)
        for name, group in by_series(found).items()
        if any(each.contrast is not None for each in group)
    ]
    declared = answer.primary.found.declared
    if _is_slope(declared):
        series.append(Line2D([], [], color=INK, linestyle="--", label="fitted slope"))
    return [
        *series,
        declared_handle("primary contrast"),
        band_handle(f"margin, {margin(declared)}"),
    ]
