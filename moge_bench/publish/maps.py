"""The topographic maps of one run a method, side by side: what lies where, and what is alike.

From the analyses of probes (analysis/): nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moge_bench.analysis.store import Analysis, AnalysisStore, LayerMap
from moge_bench.methods import METHODS
from moge_bench.publish.captions import Captions
from moge_bench.publish.comparisons import arm_name
from moge_bench.publish.panels import INK, PAPER, WIDTH, finish, method_handles
from moge_bench.study.answer import Answer
from moge_bench.study.frame import Arm
from moge_bench.study.names import coordinates_key

METHODS_SHOWN = ("moe", "moge", "moge-shuffled")
NO_MAPS = (
    "No maps: no run of moe, moge or moge-shuffled in this study has an analysis; moge-bench "
    "analyze makes them from the probes of runs."
)
_TITLE = "What lies where on the map of experts?"
_SIDE, _CURVE = 1.95, 1.7  # inches
_LETTERS = 2  # a longer name of a category does not fit a cell
_CURVE_OF = "topography_score_correlation"


@dataclass(frozen=True)
class Mapped:
    """One run with a map, of one arm."""

    arm: Arm
    seed: int
    analysis: Analysis

    @property
    def layer(self) -> LayerMap:
        """The first MoE layer: the one that is drawn."""
        return self.analysis.maps[0]


def mapped(answer: Answer, analyses: AnalysisStore) -> list[Mapped]:
    """Return the runs that are drawn, one a method of ``METHODS_SHOWN``, all of one seed.

    Where: at the place of the grid that the primary contrast names; of several, where most of the
    methods have an analysis, then the one with most experts, then the first. The seed: the lowest
    that all of them have. [] where no run has an analysis.
    """
    best: list[Mapped] = []
    most = (0, 0)
    for arms in _places(answer):
        found = {name: _analyses(arms[name], analyses) for name in METHODS_SHOWN if name in arms}
        having = {name: each for name, each in found.items() if each}
        seeds = set.intersection(*map(set, having.values())) if having else set()
        if not seeds:
            continue
        seed = min(seeds)
        chosen = [Mapped(arms[name], seed, each[seed]) for name, each in having.items()]
        score = (len(chosen), chosen[0].layer.rows * chosen[0].layer.cols)
        if score > most:
            best, most = chosen, score
    return best


def _places(answer: Answer) -> list[dict[str, Arm]]:
    """Return method -> arm at every place of the grid, or at those that the contrast names."""
    primary = answer.primary
    named = primary.found.declared.at if primary is not None else {}
    places: dict[str, dict[str, Arm]] = {}
    for arm in answer.results.arms:
        for at in arm.entry.coordinates:
            if all(axis == "method" or at[axis] in named[axis] for axis in named):
                key = coordinates_key({a: value for a, value in at.items() if a != "method"})
                places.setdefault(key, {})[arm.method] = arm
    return list(places.values())


def _analyses(arm: Arm, analyses: AnalysisStore) -> dict[int, Analysis]:
    """Return the analyses of the very runs that left the arm's records, by seed."""
    found = {}
    for seed, record in arm.records.items():
        analysis = analyses.read(record.run_id)
        if analysis is not None and analysis.maps and analysis.code == record.code.digest:
            found[seed] = analysis
    return found


def draw_maps(answer: Answer, found: Sequence[Mapped], captions: Captions) -> Iterator[Figure]:
    """Yield the one figure: a column a method, a row each of load, preference, router; a curve."""
    if not found:
        return
    rows, places = _rows(found), _places_of(answer, found)
    ratio = min(1.0, max(each.layer.rows / each.layer.cols for each in found))
    heights = [*[_SIDE * ratio + 0.25] * len(rows), _CURVE]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3))
    grid = figure.add_gridspec(len(heights), len(found), height_ratios=heights)
    for row, (title, values, colours, low, high) in enumerate(rows):
        panels = [figure.add_subplot(grid[row, column]) for column in range(len(found))]
        for axes, each, cells in zip(panels, found, values, strict=True):
            drawn = axes.pcolormesh(
                np.array(cells, dtype=float).reshape(each.layer.rows, each.layer.cols),
                cmap=colours,
                vmin=low,
                vmax=high,
                edgecolors=PAPER,
                linewidth=1,
            )
            axes.set_aspect("equal")
            axes.invert_yaxis()
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            for side in axes.spines.values():
                side.set_visible(False)
            if row == 0:
                name = METHODS[each.arm.method]
                place = f"\n{places[each.arm.method]}" if len(set(places.values())) > 1 else ""
                axes.set_title(f"{name.name}{place}", color=name.colour)
            if title.startswith("preferred"):
                _write_categories(axes, each.layer, cells, high)
        panels[0].set_ylabel(title)
        figure.colorbar(drawn, ax=panels, shrink=0.85, pad=0.02)
    _draw_curve(figure.add_subplot(grid[-1, :]), found)
    methods = [each.arm.method for each in found]
    same = set(places.values())
    at = f" At {same.pop()}." if len(same) == 1 and any(same) else ""
    yield finish(figure, _TITLE, [method_handles(methods)], _note(found, captions, at))


_Row = tuple[str, Sequence[Sequence[float]], str, float, float]


def _rows(found: Sequence[Mapped]) -> list[_Row]:
    """Return title, values of each map, colours and their limits, which the maps share."""
    layers = [each.layer for each in found]
    loads = [
        [n * len(layer.load) / max(sum(layer.load), 1) for n in layer.load] for layer in layers
    ]
    rows: list[_Row] = [
        ("load\n(1: even)", loads, "viridis", 0.0, _most(loads)),
        ("preferred class,\nby what factor", [layer.lift for layer in layers], "cividis", 1.0,
         max(_most([layer.lift for layer in layers]), 1.1)),
    ]  # fmt: skip
    near = [layer.router_similarity for layer in layers]
    if all(each is not None for each in near):
        known: list[Any] = near
        widest = max(max(map(abs, each)) for each in known) or 1.0
        rows.append(("router row's cosine\nwith its neighbours", known, "PuOr", -widest, widest))
    return rows


def _most(values: Sequence[Sequence[float]]) -> float:
    return max(max(each) for each in values)


def _places_of(answer: Answer, found: Sequence[Mapped]) -> dict[str, str]:
    """Return method -> where on the grid its run stands, in words."""
    names = {each.arm.method: arm_name(answer.results, each.arm) for each in found}
    return {method: name.partition(", ")[2] for method, name in names.items()}


def _write_categories(axes: Axes, layer: LayerMap, cells: Sequence[float], most: float) -> None:
    """Write each cell's category, where all of them are short enough to be read."""
    names = [str(layer.categories[index]) for index in layer.preferred]
    if max(map(len, names)) > _LETTERS:
        return
    size = 8.0 if layer.cols <= 8 else 6.0
    for place, name in enumerate(names):
        row, column = divmod(place, layer.cols)
        dark = (cells[place] - 1) / (most - 1) < 0.5
        axes.text(column + 0.5, row + 0.5, name, ha="center", va="center", fontsize=size,
                  color="#f5f5f5" if dark else "#101010")  # fmt: skip


def _draw_curve(axes: Axes, found: Sequence[Mapped]) -> None:
    """Draw how alike the scores of two experts are, by their distance on the map."""
    axes.axhline(0.0, color=INK, linewidth=1)
    last = 1
    for each in found:
        points = sorted(
            (int(number.at.rpartition("_")[2]), number.value)
            for number in each.analysis.numbers
            if number.name == _CURVE_OF and number.block == each.layer.block and number.at
        )
        if points:
            last = max(last, points[-1][0])
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, "o-", color=METHODS[each.arm.method].colour, markersize=5)
    axes.set_xticks(range(1, last + 1))
    axes.set_xlabel("distance of two experts on the map")
    axes.set_ylabel("correlation of\ntheir scores")
    axes.grid(visible=False, axis="x")


def _note(found: Sequence[Mapped], captions: Captions, at: str) -> str:
    layer = found[0].layer
    borders = " and ".join(dict.fromkeys(each.layer.border for each in found))
    letters = [len(str(name)) for each in found for name in each.layer.categories]
    number = " Its number is in the cell." if max(letters) <= _LETTERS else ""
    runs = ", ".join(f"{each.arm.method} {each.analysis.run_id}" for each in found)
    return (
        f"One run each, seed {found[0].seed}, the lowest that all have: n = 1, a picture and no "
        f"test.{at} First MoE layer (block {layer.block}); a cell is an expert at its place on the "
        f"map; border: {borders}. Load: an expert's choices on the validation split over their "
        "mean. Preferred class: that whose share of the expert's scores exceeds its share of all "
        f"scores by the largest factor.{number} Runs: {runs}. Definitions: docs/analyses.md. "
        f"Made by: moge-bench analyze, then figures, --results {captions.root}."
    )
