"""Frames of figures: pages of a few panels, legends outside, a note under each page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from moge_bench.methods import METHODS

WIDTH = 7.5  # inches; at 120 dots an inch a figure is 900 pixels wide
PANELS = 6  # of a page
PAGES = 4
ROWS = 40  # of a page of arms
# The report replaces these three by the colours of its theme.
INK, MUTED, PAPER = "#1a1a1b", "#5c5c5d", "#fffffe"
BETTER = {"higher": "\nhigher is better", "lower": "\nlower is better", None: ""}
_NOTE_WIDTH, _NOTE_LINE = 120, 0.145  # characters in a line, inches a line
_TITLE_WIDTH, _TITLE_LINE = 76, 0.2
_SAID_WIDTH, _SAID_LINE = 104, 0.18
_LEGEND_LINE = 0.25
_LEGEND_WIDTH = 96  # characters of a row of a legend, about

T = TypeVar("T")


def pages(things: Sequence[T], size: int) -> Iterator[tuple[Sequence[T], str]]:
    """Yield at most ``PAGES`` pages of ``things``, and what each says on those left out."""
    count = -(-len(things) // size)
    for page in range(min(count, PAGES)):
        part = things[page * size : (page + 1) * size]
        left = len(things) - PAGES * size
        said = f"Page {page + 1} of {min(count, PAGES)}." if count > 1 else ""
        if left > 0:
            said += f" {left} more are in table.csv alone."
        yield part, said


def frame(
    count: int, height: float = 2.6, alone: float = 3.2, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Return a figure and ``count`` panels that share their axes.

    ``height`` of a panel in inches, ``alone`` where there is one row of them.
    """
    across = _across(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(WIDTH, (height if down > 1 else alone) * down + 0.4))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    return figure, list(axes.flat[:count])


def stack(columns: int, heights: Sequence[float]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its panels, a row each of ``heights`` inches.

    The panels of a column share x, those of a row y.
    """
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5))
    axes = figure.subplots(
        len(heights), columns, sharex="col", sharey="row", squeeze=False,
        height_ratios=list(heights),
    )  # fmt: skip
    return figure, [list(row) for row in axes]


def _across(count: int, columns: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(count, min(columns, count))


def label_edges(axes: Sequence[Axes], x: str, y: str, columns: int = 3) -> None:
    """Label x under the lowest panel of every column, y beside the first of every row."""
    across = _across(len(axes), columns)
    for place, panel in enumerate(axes):
        if place % across == 0:
            panel.set_ylabel(y)
        if place >= len(axes) - across:
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)


def method_handles(methods: Sequence[str], marker: str = "o") -> list[Line2D]:
    """Return a legend's entry for each method."""
    return [
        Line2D([], [], color=METHODS[name].colour, marker=marker, linewidth=2, label=name)
        for name in methods
    ]


def _rows_of(handles: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the entries of a legend in rows that fit the width."""
    row: list[Any] = []
    used = 0
    for handle in handles:
        size = len(handle.get_label()) + 8
        if row and used + size > _LEGEND_WIDTH:
            yield row
            row, used = [], 0
        row.append(handle)
        used += size
    if row:
        yield row


def finish(
    figure: Figure, question: str, legends: Sequence[Sequence[Any]], note: str, said: str = ""
) -> Figure:
    """Add the question and the verdict over the panels; under them the legends and the note.

    The figure grows by what they need, so that they cover nothing and panels keep their size.
    """
    title = textwrap.fill(" ".join(question.split()), _TITLE_WIDTH)
    verdict = textwrap.fill(" ".join(said.split()), _SAID_WIDTH)
    text = textwrap.fill(" ".join(note.split()), _NOTE_WIDTH)
    shown = [row for handles in legends for row in _rows_of(handles)]
    verdict_top = _TITLE_LINE * (title.count("\n") + 1) + 0.08
    above = verdict_top + 0.1 + (_SAID_LINE * (verdict.count("\n") + 1) if verdict else 0)
    note_top = _NOTE_LINE * (text.count("\n") + 1) + 0.15
    below = note_top + _LEGEND_LINE * len(shown)
    panels = figure.get_figheight()
    tall = above + panels + below
    figure.set_figheight(tall)
    figure.set_layout_engine("constrained", rect=(0, below / tall, 1, panels / tall))
    figure.text(0.01, 1 - 0.06 / tall, title, fontsize=11, fontweight="bold", va="top")
    if verdict:
        figure.text(0.01, 1 - verdict_top / tall, verdict, fontsize=9.5, va="top")
    figure.text(0.01, 0.06 / tall, text, fontsize=8, color=MUTED, va="bottom")
    for row, handles in enumerate(reversed(shown)):
        figure.add_artist(
            Legend(
                figure, list(handles), [handle.get_label() for handle in handles],
                loc="lower center", ncols=len(handles), columnspacing=1.5, borderaxespad=0,
                bbox_to_anchor=(0.5, (note_top + _LEGEND_LINE * row) / tall),
                bbox_transform=figure.transFigure,
            )
        )  # fmt: skip
    return figure
