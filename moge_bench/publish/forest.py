"""Figures of methods and of axes without a scale: a row a comparison, the declared ones first.

To the right, on the same rows, what the loss did to the router of the row's arm (beside.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moge_bench.publish import beside
from moge_bench.publish.captions import Captions
from moge_bench.publish.comparisons import (
    Comparison,
    bounds,
    headline,
    listed,
    numbers_of_seeds,
    same_number,
)
from moge_bench.publish.design import colour
from moge_bench.publish.marks import BAND, BAND_ALPHA, DOT, band_handle, bar, declared_handle, dots
from moge_bench.publish.numbers import Shown
from moge_bench.publish.panels import BETTER, INK, MUTED, ROWS, WIDTH, finish, pages
from moge_bench.study.answer import Answer

_ROW = 0.3  # inches
_APART = 0.24  # of a row, from an interval to the dots of its seeds
_LOW = 0.9  # width of a panel beside, that of a difference is 2.4


def draw_forest(
    answer: Answer, shown: Sequence[Shown], right: Sequence[Shown], captions: Captions
) -> Iterator[Figure]:
    """Yield the comparisons in each of ``shown``, a panel each, and ``right`` beside them."""
    first = shown[0]
    by_panel = [listed(answer, each) for each in shown]
    for rows, said in pages(range(len(by_panel[0])), ROWS):
        parts = [[found[row] for row in rows] for found in by_panel]
        figure = Figure(figsize=(WIDTH, _ROW * len(rows) + 0.9))
        widths = [2.4] * len(shown) + [_LOW] * len(right)
        panels = figure.subplots(
            1, len(widths), sharey=True, squeeze=False, width_ratios=widths
        )[0]  # fmt: skip
        for axes, each, part in zip(panels, shown, parts, strict=False):
            _draw_panel(axes, answer, each, part)
            if len(shown) > 1:
                axes.set_title(each.split.replace("_", " "))
        title = first.title if len(shown) == 1 else first.metric.title
        unit = f" ({first.difference_unit})" if first.difference_unit else ""
        panels[0].set_xlabel(f"difference in {title}{unit}{BETTER[first.metric.better]}")
        panels[0].set_yticks(range(len(rows)), [_label(each) for each in parts[0]])
        for tick, row in zip(panels[0].get_yticklabels(), parts[0], strict=True):
            tick.set_fontweight("bold" if row.kind == "primary" else "normal")
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        for axes, each in zip(panels[len(shown) :], right, strict=True):
            beside.draw_rows(axes, [c.arm for c in parts[0]], each)
        handles: list[Any] = []
        note = f"{DOT} "
        if answer.primary is not None:
            handles = [declared_handle("primary contrast"), band_handle("declared margin")]
            note += "Filled: the primary contrast. Shaded: the margin of each declared one. "
            note += "Rows: the primary contrast, its cells, the secondary ones, all others. "
        else:
            note += f"Filled: p < 0.05 after Holm's correction. {captions.difference(first)} "
        note += f"n = {numbers_of_seeds(parts[0])} seeds. {beside.note(right)} {said} "
        note += captions.tail("figures")
        yield finish(figure, captions.question, [handles], note, headline(answer))


def _label(each: Comparison) -> str:
    text = f"   {each.label}" if each.kind == "cell" else each.label
    return f"{text}: {each.verdict}" if each.verdict else text


def _draw_panel(axes: Axes, answer: Answer, shown: Shown, rows: Sequence[Comparison]) -> None:
    axes.axvline(0.0, color=INK, linewidth=1)
    _draw_margins(axes, answer, shown, rows)
    for row, each in enumerate(rows):
        if each.contrast is None:
            axes.text(0.02, row, "no seed has both arms", color=MUTED, va="center", fontsize=8,
                      transform=axes.get_yaxis_transform())  # fmt: skip
            continue
        hue = colour(each.arm)
        dots(axes, list(each.contrast.values.values()), row + _APART, hue, vertical=False)
        filled = each.kind == "primary"
        if answer.primary is None:
            filled = shown.numbers[each.arm.entry.arm_id].kept
        bar(axes, each.contrast.sample, row, hue, vertical=False, filled=filled)
    axes.grid(visible=False, axis="y")


def _draw_margins(axes: Axes, answer: Answer, shown: Shown, rows: Sequence[Comparison]) -> None:
    """Shade the margin of each declared row; the rows of its cells belong to the primary one."""
    if answer.primary is None or not same_number(answer.primary, shown):
        return
    for row, each in enumerate(rows):
        own = answer.primary.found.declared
        margin = own.margin if each.kind == "cell" else each.margin
        if margin is not None:
            low, high = bounds(own.model_copy(update={"margin": margin}))
            axes.add_patch(
                Rectangle((low, row - 0.5), high - low, 1, color=BAND, alpha=BAND_ALPHA,
                          linewidth=0, zorder=0)
            )  # fmt: skip
