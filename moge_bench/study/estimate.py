"""What a declared contrast came to: from a study's records, seed by seed, cell by cell.

Only finished runs enter, and of a seed only where both arms of every cell have one: each seed then
weighs the cells alike. The cells of a seed share its weights and batches, so they are summed
first, and the t test is over seeds: n is the number of seeds, whatever the number of cells. (It
equals least squares with the covariance clustered by seed: study/pooled.py.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moge_bench.runs.record import Record
from moge_bench.study.contrasts import Contrast, Equivalence, Scale, contrast, equivalence, paired
from moge_bench.study.declared import DeclaredContrast, Pair, find_pairs, weigh
from moge_bench.study.frame import Arm, Results, values_by_seed


@dataclass(frozen=True)
class CellResult:
    """One cell: its weight, its own contrast over its own seeds, and the records of both arms.

    ``weight`` is None where no seed has both arms: the cell is left out.
    """

    pair: Pair
    weight: float | None
    contrast: Contrast | None
    differences: Mapping[int, float]  # as Scale.difference, by seed
    records: Mapping[int, tuple[Record, Record]]


@dataclass(frozen=True)
class Missing:
    """A planned run that gives the contrast no number, and why: missing, failed or diverged."""

    run_id: str
    arm: str
    seed: int
    why: str


@dataclass(frozen=True)
class Estimate:
    """A declared contrast, what it is made of, and what was found; None where nothing was."""

    declared: DeclaredContrast
    cells: tuple[CellResult, ...]
    planned: int  # seeds
    differences: Mapping[int, float]  # weighted sums over cells, as Scale.difference, by seed
    contrast: Contrast | None
    equivalence: Equivalence | None
    missing: tuple[Missing, ...]

    @property
    def n(self) -> int:
        """How many seeds entered."""
        return len(self.differences)

    @property
    def complete(self) -> bool:
        """Whether no run is still to come: a diverged one has said what it has to say."""
        return all(each.why == "diverged" for each in self.missing)

    @property
    def diverged(self) -> int:
        """How many of its runs diverged."""
        return sum(each.why == "diverged" for each in self.missing)

    @property
    def selected(self) -> bool:
        """Whether what entered is a selection: without a cell, or without runs that diverged."""
        return bool(self.left_out or self.diverged)

    @property
    def scale(self) -> Scale:
        """On what its values are subtracted."""
        return Scale(self.declared.number.compared == "ratio")

    @property
    def left_out(self) -> tuple[CellResult, ...]:
        """The cells of which no seed has both arms."""
        return tuple(cell for cell in self.cells if cell.weight is None)

    @property
    def entered(self) -> tuple[CellResult, ...]:
        """The cells that have a weight."""
        return tuple(cell for cell in self.cells if cell.weight is not None)

    @property
    def records(self) -> list[Record]:
        """The records that the estimate is made of, each once."""
        found = {
            record.run_id: record
            for cell in self.entered
            for seed in self.differences
            for record in cell.records[seed]
        }
        return list(found.values())


def estimate(results: Results, declared: DeclaredContrast) -> Estimate:
    """Return what the records say on a declared contrast, complete or not."""
    arms = {arm.entry.arm_id: arm for arm in results.arms}
    entries = [arm.entry for arm in results.arms]
    pairs = find_pairs(declared, results.study.axes, entries)
    scale = Scale(declared.number.compared == "ratio")
    values = {
        arm_id: values_by_seed(arms[arm_id], declared.number, declared.where)
        for arm_id in dict.fromkeys(i for pair in pairs for i in (pair.arm_id, pair.baseline_id))
    }
    by_cell = [_differences(values[p.arm_id], values[p.baseline_id], scale) for p in pairs]
    kept = [pair for pair, found in zip(pairs, by_cell, strict=True) if found]
    weights = weigh(declared, kept)
    weight_of = dict(zip(map(id, kept), weights or [0.0] * len(kept), strict=True))
    cells = tuple(
        CellResult(
            pair, weight_of.get(id(pair)),
            paired(values[pair.arm_id], values[pair.baseline_id], scale),
            found, _records(arms[pair.arm_id], arms[pair.baseline_id], found),
        )
        for pair, found in zip(pairs, by_cell, strict=True)
    )  # fmt: skip
    summed = _sum(cells) if weights is not None else {}
    largest = scale.largest([v for found in values.values() for v in found.values()])
    largest *= sum(abs(weight) for weight in weights or ())
    return Estimate(
        declared, cells, len(results.study.base.seeds), summed,
        contrast(summed, scale, largest),
        equivalence(list(summed.values()), declared.margin, scale, largest),
        tuple(_missing([arms[arm_id] for arm_id in values], values)),
    )  # fmt: skip


def _differences(
    values: Mapping[int, float], baseline: Mapping[int, float], scale: Scale
) -> dict[int, float]:
    seeds = sorted(values.keys() & baseline.keys())
    return {seed: scale.difference(values[seed], baseline[seed]) for seed in seeds}


def _records(arm: Arm, baseline: Arm, seeds: Mapping[int, Any]) -> dict[int, tuple[Record, Record]]:
    return {seed: (arm.records[seed], baseline.records[seed]) for seed in seeds}


def _sum(cells: Sequence[CellResult]) -> dict[int, float]:
    """Return the weighted sum over cells of every seed that all of them have."""
    entered = [(cell.weight, cell.differences) for cell in cells if cell.weight is not None]
    if not entered:
        return {}
    seeds = set.intersection(*(set(differences) for _, differences in entered))
    return {
        seed: sum(weight * differences[seed] for weight, differences in entered)
        for seed in sorted(seeds)
    }


def _missing(arms: Sequence[Arm], values: Mapping[str, Mapping[int, float]]) -> list[Missing]:
    found = []
    for arm in arms:
        for seed, run_id in arm.entry.runs.items():
            why: str
            if seed in arm.unfinished:
                why = arm.unfinished[seed].status
            elif seed not in arm.records:
                why = "missing"
            elif seed not in values[arm.entry.arm_id]:
                why = "not measured"
            else:
                continue
            found.append(Missing(run_id, arm.label, seed, why))
    return found
