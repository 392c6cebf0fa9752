"""Records to figures: what the table of a grid shows, and the training curves behind it.

From records alone, for any grid; PNG and SVG, the same bytes for the same records.
"""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moge_bench.runs.record import RecordStore, write_atomically
from moge_bench.study.contrasts import describe
from moge_bench.study.frame import (
    SHOWN,
    Line,
    collect_lines,
    line_label,
    quartiles,
    values_by_seed,
)
from moge_bench.study.grid import SPEED_METRICS, SPLIT_METRICS, Grid

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "moge-bench", "svg.fonttype": "none", "font.size": 8, "axes.grid": True,
    "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "savefig.dpi": 150,
    "text.parse_math": False,  # a $ in a name is a letter
}  # fmt: skip
_METHOD_COLOURS = {"dense": "#555555", "moe": "#1f77b4", "moge": "#d62728"}
_SPLIT_MARKERS = {"validation": "o", "test": "s", "validation_attacked": "^", "test_attacked": "D"}
_DASHES = ("-", "--", ":", "-.")


def write_figures(grid: Grid, store: RecordStore, folder: Path) -> list[Path]:
    """Write folder/NAME.{png,svg} and NAME_curves.{png,svg}; return the paths.

    A grid without a finished run has no figure: the list is empty.
    """
    lines = [line for line in collect_lines(grid, store) if line.records]
    if not lines:
        return []
    paths = []
    with rc_context(_STYLE):
        for suffix, figure in (
            ("", draw_metrics(grid, lines)),
            ("_curves", draw_curves(grid, lines)),
        ):
            for kind in ("png", "svg"):
                paths.append(folder / f"{grid.file.name}{suffix}.{kind}")
                write_atomically(paths[-1], _render(figure, kind))
    return paths


def _render(figure: Figure, kind: str) -> bytes:
    """Return the file's bytes, without the date and version that would make two runs differ."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def draw_metrics(grid: Grid, lines: list[Line]) -> Figure:
    """Return a panel per metric of the table: a row per line, seeds as dots, mean and spread.

    Splits are told apart by marker; speeds are the median with the quartiles of the timed steps.
    """
    metrics = grid.file.table.metrics
    figure = Figure(
        figsize=(1.6 + 2.6 * len(metrics), 1.4 + 0.34 * len(lines)), layout="constrained"
    )
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        title, unit, _ = SHOWN[metric]
        axes.set_title(f"{title} ({unit})" if unit else title)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        for row, line in enumerate(lines):
            if metric in SPLIT_METRICS:
                _draw_splits(axes, grid, line, metric, row)
            else:
                _draw_value(axes, grid, line, metric, row)
    panels[0].set_yticks(range(len(lines)), [_row_label(line, grid) for line in lines])
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    panels[0].set_ylabel(", ".join((*grid.file.table.rows, *grid.file.table.columns)))
    _add_split_legend(figure, grid)
    figure.suptitle(
        f"{grid.file.name}: mean and standard deviation over n seeds, a dot each; "
        "speeds: median and quartiles", x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _row_label(line: Line, grid: Grid) -> str:
    return f"{line_label(line, grid)} (n={len(line.records)})"


def _draw_splits(axes: Axes, grid: Grid, line: Line, metric: str, row: int) -> None:
    splits = grid.file.table.splits
    for index, split in enumerate(splits):
        y = row + 0.7 * ((index + 0.5) / len(splits) - 0.5)
        values = list(values_by_seed(line, metric, split, grid.file.name).values())
        sample = describe(values)
        if sample is None:
            continue
        colour = _METHOD_COLOURS[line.point.configs[0].method]
        axes.plot(values, [y] * len(values), ".", color=colour, alpha=0.35, markersize=3)
        axes.errorbar(
            sample.mean, y, xerr=sample.spread, fmt=_SPLIT_MARKERS[split], color=colour,
            markersize=4, capsize=2, linewidth=1,
        )  # fmt: skip


def _draw_value(axes: Axes, grid: Grid, line: Line, metric: str, row: int) -> None:
    values = list(values_by_seed(line, metric, "", grid.file.name).values())
    if not values:
        return
    bounds = quartiles(line, metric, grid.file.name) if metric in SPEED_METRICS else {}
    lower, upper = bounds.get("lower"), bounds.get("upper")
    middle = fmean(values)
    error = None if lower is None or upper is None else [[middle - lower], [upper - middle]]
    axes.errorbar(
        middle, row, xerr=error, fmt="o", markersize=4, capsize=2, linewidth=1,
        color=_METHOD_COLOURS[line.point.configs[0].method],
    )  # fmt: skip


def _add_split_legend(figure: Figure, grid: Grid) -> None:
    splits = grid.file.table.splits
    if len(splits) < 2 or not set(grid.file.table.metrics) & set(SPLIT_METRICS):
        return
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], _SPLIT_MARKERS[split], color="black", markersize=4)[0] for split in splits
    ]
    labels = [split.replace("_", " ") for split in splits]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(splits))


def draw_curves(grid: Grid, lines: list[Line]) -> Figure:
    """Return the training loss over the steps: the mean over seeds in a band from least to most."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    drawn: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        points: defaultdict[int, list[float]] = defaultdict(list)
        for record in line.records.values():
            for point in record.curves:
                if (point.name, point.split) == ("task_loss", "training"):
                    points[point.step].append(point.value)
        steps = sorted(points)
        method = line.point.configs[0].method
        colour, dash = _METHOD_COLOURS[method], _DASHES[drawn[method] % len(_DASHES)]
        drawn[method] += 1
        axes.plot(
            steps, [fmean(points[step]) for step in steps], dash, color=colour, linewidth=1,
            label=line_label(line, grid),
        )  # fmt: skip
        axes.fill_between(
            steps, [min(points[step]) for step in steps], [max(points[step]) for step in steps],
            color=colour, alpha=0.08, linewidth=0,
        )  # fmt: skip
    axes.set(xlabel="optimiser step", ylabel="training loss (nats)", title=grid.file.name)
    figure.legend(loc="outside right upper", fontsize=6)
    return figure
