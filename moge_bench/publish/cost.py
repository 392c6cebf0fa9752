"""What a study's arms cost as a picture: speed and memory, a row an arm."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from moge_bench.publish.captions import Captions
from moge_bench.publish.comparisons import arm_name
from moge_bench.publish.design import colour
from moge_bench.publish.numbers import Number, Shown
from moge_bench.publish.panels import BETTER, ROWS, WIDTH, finish, pages
from moge_bench.study.frame import Results


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
            panel.set_xlabel(heading + BETTER[each.metric.better])
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
