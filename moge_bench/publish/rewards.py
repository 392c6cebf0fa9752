"""What the group-sparse loss rewards: the numbers of docs/method.md, as a table and a picture.

They stand in what_the_loss_rewards.json. A test computes them again (tests/docs/test_method.py),
and another compares the page with the file.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

from moge_bench.publish.panels import INK, MUTED, WIDTH, finish

_FILE = Path(__file__).parent / "what_the_loss_rewards.json"
_MARKS = {"uniform": "o", "best one-hot": "^", "worst one-hot": "v", "least": "D"}
_HUES = {"uniform": "#0072B2", "best one-hot": "#009E73", "worst one-hot": "#D55E00", "least": INK}
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


@cache
def loss_numbers() -> dict[str, list[dict[str, str]]]:
    """Return "loss" and "unit_energy": the rows of the page's tables, as it writes them."""
    numbers: dict[str, list[dict[str, str]]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return numbers


def draw_rewards() -> Figure:
    """Return the loss of uniform and of one-hot scores, and the least of all, a row a map."""
    rows = loss_numbers()["loss"]
    figure = Figure(figsize=(WIDTH, 0.34 * len(rows) + 0.7))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        values = [float(row[name]) for name in _MARKS]
        axes.plot([min(values), max(values)], [place, place], color=MUTED, linewidth=1, zorder=1)
        for name, value in zip(_MARKS, values, strict=True):
            size = 5.0 if name == "least" else 8.0
            axes.plot(value, place, _MARKS[name], color=_HUES[name], markersize=size, zorder=2)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [row["map, border"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("loss of one token (log scale)")
    axes.grid(visible=False, axis="y")
    handles = [
        axes.plot([], [], _MARKS[name], color=_HUES[name], label=f"{name} scores")[0]
        if name != "least"
        else axes.plot([], [], _MARKS[name], color=_HUES[name], label="least of all scores")[0]
        for name in _MARKS
    ]
    note = "h = 3, sigma = 1. Computed again by pytest tests/docs."
    return finish(figure, "What does the group-sparse loss reward?", [handles], note)
