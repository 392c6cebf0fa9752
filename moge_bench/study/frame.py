"""The lines of a grid's table: distinct runs with their records, baselines and figures.

What tables and figures share. Nothing here trains, times or formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moge_bench.runs.record import Quartiles, Record, RecordStore
from moge_bench.study.grid import SPEED_METRICS, SPLIT_METRICS, Grid, Point

UNKNOWN = "-"
# Name, unit and decimals of every metric in a table.
SHOWN = {
    "top1_accuracy": ("top-1", "%", 2), "top5_accuracy": ("top-5", "%", 2),
    "cross_entropy": ("cross-entropy", "nats", 4), "perplexity": ("perplexity", "", 2),
    "bits_per_byte": ("bits per byte", "bits", 4), "peak_memory_mib": ("peak memory", "MiB", 2),
    "tokens_per_second": ("throughput", "tokens/s", 0), "step_ms": ("step", "ms", 2),
    "scoring_tokens_per_second": ("scoring throughput", "tokens/s", 0),
    "peak_rss_mib": ("peak RSS", "MiB", 0), "parameters": ("parameters", "", 0),
    "active_parameters": ("active parameters", "", 0),
}  # fmt: skip
_WEAKER = {"moge": ("moe", "dense"), "moe": ("dense",), "dense": ()}


@dataclass(frozen=True)
class Line:
    """One distinct run: the first point of the grid that has it, and its records by seed."""

    point: Point
    records: dict[int, Record]
    failed: dict[int, Record]
    missing: int


def collect_lines(grid: Grid, store: RecordStore) -> list[Line]:
    """Return the grid's distinct runs with whatever records there are, rows first in order."""
    shown = (*grid.file.table.rows, *grid.file.table.columns)
    axes = grid.file.axes
    lines: dict[tuple[str, ...], Line] = {}
    for point in sorted(
        grid.points, key=lambda p: [axes[axis].index(p.coordinates[axis]) for axis in shown]
    ):
        if point.hashes in lines:
            continue
        found = {config.seed: store.read(config.hash()) for config in point.configs}
        finished = {s: r for s, r in found.items() if r is not None and r.status == "finished"}
        failed = {s: r for s, r in found.items() if r is not None and r.status == "failed"}
        missing = len(found) - len(finished) - len(failed)
        lines[point.hashes] = Line(point, finished, failed, missing)
    return list(lines.values())


def baseline_of(line: Line, lines: list[Line], grid: Grid) -> Line | None:
    """Return what ``line`` is compared with: the same coordinates under the next weaker method.

    MoGE is compared with MoE (or dense, where the grid has no MoE), MoE with dense. Without a
    ``method`` axis every line is compared with the first one.
    """
    if "method" not in grid.file.axes:
        return None if line is lines[0] else lines[0]
    by_hashes = {other.point.hashes: other for other in lines}
    for method in _WEAKER[line.point.configs[0].method]:
        wanted = {**line.point.coordinates, "method": method}
        for point in grid.points:
            if point.coordinates == wanted:
                return by_hashes[point.hashes]
    return None


def values_by_seed(line: Line, metric: str, split: str, grid: str) -> dict[int, float]:
    """Return metric values by seed; the speed pass gives one figure per config, of any seed."""
    found: dict[int, float | None] = {}
    for seed, record in line.records.items():
        if metric in SPLIT_METRICS:
            found[seed] = record.value(metric, split)
        elif metric in SPEED_METRICS:
            speed = record.speed.get(grid)
            value: Any = getattr(speed, metric) if speed is not None else None
            found[seed] = value.median if isinstance(value, Quartiles) else value
        elif metric == "peak_rss_mib":
            found[seed] = record.peak_rss_mib
        else:
            name = {"parameters": "total", "active_parameters": "active"}[metric]
            found[seed] = record.parameters.get(name)
    return {seed: value for seed, value in found.items() if value is not None}


def quartiles(line: Line, metric: str, grid: str) -> dict[str, float | None]:
    """Return the quartiles and the number of timed steps; nothing for an exact figure."""
    if metric == "peak_memory_mib":
        return {}
    speeds = [record.speed[grid] for record in line.records.values() if grid in record.speed]
    if not speeds:
        return dict.fromkeys(("lower", "upper", "n"))
    return getattr(speeds[0], metric).model_dump(include={"lower", "upper", "n"})


def axes_that_matter(point: Point, grid: Grid) -> dict[str, Any]:
    """Return the coordinates, with `-` where another value of the axis would be the same run.

    In the order of the table's rows, then its columns.
    """
    shown: dict[str, Any] = {}
    for axis in (*grid.file.table.rows, *grid.file.table.columns):
        value = point.coordinates[axis]
        others = [
            other
            for other in grid.points
            if other.coordinates[axis] != value
            and all(other.coordinates[a] == v for a, v in point.coordinates.items() if a != axis)
        ]
        irrelevant = others and all(other.hashes == point.hashes for other in others)
        shown[axis] = UNKNOWN if irrelevant else value
    return shown


def line_label(line: Line, grid: Grid) -> str:
    """Return the axis values that tell ``line`` from the others, in one string."""
    shown = axes_that_matter(line.point, grid)
    return " ".join(str(value) for value in shown.values() if value != UNKNOWN)
