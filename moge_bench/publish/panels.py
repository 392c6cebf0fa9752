"""Frames of figures: pages of at most six panels, legends outside, a note under each page."""

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
_NOTE_WIDTH, _NOTE_LINE = 120, 0.145  # characters in a line, inches a line
_TITLE_WIDTH, _TITLE_LINE = 76, 0.2
_LEGEND_LINE = 0.25

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


def finish(figure: Figure, question: str, legends: Sequence[Sequence[Any]], note: str) -> Figure:
    """Add the question over the panels, and under them a legend a row and the note.

    The figure grows by what they need, so that they cover nothing and panels keep their size.
    """
    title = textwrap.fill(" ".join(question.split()), _TITLE_WIDTH)
    text = textwrap.fill(" ".join(note.split()), _NOTE_WIDTH)
    shown = [handles for handles in legends if handles]
    above = _TITLE_LINE * (title.count("\n") + 1) + 0.15
    note_top = _NOTE_LINE * (text.count("\n") + 1) + 0.15
    below = note_top + _LEGEND_LINE * len(shown)
    panels = figure.get_figheight()
    tall = above + panels + below
    figure.set_figheight(tall)
    figure.set_layout_engine("constrained", rect=(0, below / tall, 1, panels / tall))
    figure.text(0.01, 1 - 0.06 / tall, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.01, 0.06 / tall, text, fontsize=8, color="#404040", va="bottom")
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
