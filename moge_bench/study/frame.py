"""A study's records as one DataFrame, and its arms: what tables, figures and the report read.

From the manifest, the records and the speed file alone. Nothing here trains, times or formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moge_bench.analysis.store import Analysis, AnalysisStore
from moge_bench.methods import METHODS
from moge_bench.metrics import METRICS, Metric
from moge_bench.runs.record import Record
from moge_bench.runs.speed import ArmSpeed, Quartiles, SpeedPass, SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import GridFile
from moge_bench.study.manifest import ArmEntry, Change, Declaration, Manifest
from moge_bench.study.names import coordinates_key

ANY = "-"  # an axis that makes no difference to an arm


@dataclass(frozen=True)
class Arm:
    """One arm with whatever records there are: finished ones by seed, and the others."""

    entry: ArmEntry
    shown: dict[str, Any]
    records: dict[int, Record]
    unfinished: dict[int, Record]
    speed: ArmSpeed | None
    analyses: dict[int, Analysis] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """How many of its runs have no record yet."""
        return len(self.entry.runs) - len(self.records) - len(self.unfinished)

    @property
    def method(self) -> str:
        """The method of all its runs."""
        return self.entry.settings["method"]

    @property
    def label(self) -> str:
        """The axis values that tell this arm from the others, in one string."""
        return " ".join(str(value) for value in self.shown.values() if value != ANY)

    def count(self, status: str) -> int:
        """Return how many of its runs ended with ``status``: "failed" or "diverged"."""
        return sum(record.status == status for record in self.unfinished.values())


@dataclass(frozen=True)
class Results:
    """A study and what was found: its arms, in the order of the table's rows and columns."""

    study: GridFile
    arms: tuple[Arm, ...]
    speed: SpeedPass | None
    baselines: dict[str, Arm]  # arm_id -> what the arm is compared with
    declarations: tuple[Declaration, ...] = ()
    changes: tuple[Change, ...] = ()


def collect(manifest: Manifest, store: RecordStore, speeds: SpeedStore) -> Results:
    """Read the records and the speed pass of a study. Each record is read once."""
    study = manifest.study
    speed = speeds.latest(study.name, [entry.arm_id for entry in manifest.arms])
    analyses = None
    if any(METRICS[name].source == "analysis" for name in study.table.metrics):
        analyses = AnalysisStore(store.root)
    arms = tuple(_arm(entry, study, store, speed, analyses) for entry in _in_order(manifest))
    return Results(
        study, arms, speed, _baselines(arms, study), manifest.declarations, manifest.changes
    )


def _in_order(manifest: Manifest) -> list[ArmEntry]:
    """Sort the arms by the axes as the table shows them, each in the order of its values."""
    table, axes = manifest.study.table, manifest.study.axes
    places = {axis: {repr(v): i for i, v in enumerate(values)} for axis, values in axes.items()}

    def place(entry: ArmEntry) -> list[int]:
        return min(
            [places[axis][repr(c[axis])] for axis in (*table.rows, *table.columns)]
            for c in entry.coordinates
        )

    return sorted(manifest.arms, key=place)


def _arm(
    entry: ArmEntry,
    study: GridFile,
    store: RecordStore,
    speed: SpeedPass | None,
    analyses: AnalysisStore | None,
) -> Arm:
    found = {seed: store.read(run_id) for seed, run_id in entry.runs.items()}
    records = {s: r for s, r in found.items() if r is not None and r.status == "finished"}
    others = {s: r for s, r in found.items() if r is not None and r.status != "finished"}
    shown = {}
    for axis in (*study.table.rows, *study.table.columns):
        values = [coordinates[axis] for coordinates in entry.coordinates]
        shown[axis] = values[0] if all(value == values[0] for value in values) else ANY
    timed = speed.arms.get(entry.arm_id) if speed else None
    found_by = {} if analyses is None else _analyses(records, analyses)
    return Arm(entry, shown, records, others, timed, found_by)


def _analyses(records: dict[int, Record], store: AnalysisStore) -> dict[int, Analysis]:
    """Return the analyses of the very runs that left ``records``, by seed."""
    found = {}
    for seed, record in records.items():
        analysis = store.read(record.run_id)
        if analysis is not None and analysis.code == record.code.digest:
            found[seed] = analysis
    return found


def _baselines(arms: Sequence[Arm], study: GridFile) -> dict[str, Arm]:
    """Return what each arm is compared with: the same coordinates under the method's baseline.

    Without a ``method`` axis it is the arm with the value that the primary contrast compares with,
    at the same others; of a study that declares none, the first arm of the same preset.
    """
    at = {coordinates_key(c): arm for arm in arms for c in arm.entry.coordinates}
    if "method" not in study.axes:
        return _without_methods(arms, study, at)
    found = {}
    for arm in arms:
        for method in METHODS[arm.method].baselines:
            wanted = {**arm.entry.coordinates[0], "method": method}
            other = at.get(coordinates_key(wanted))
            if other is not None:
                found[arm.entry.arm_id] = other
                break
    return found


def _without_methods(arms: Sequence[Arm], study: GridFile, at: dict[str, Arm]) -> dict[str, Arm]:
    found = {}
    for arm in arms:
        place = arm.entry.coordinates[0]
        if study.primary is not None:
            declared = {study.primary.axis: study.primary.contrast[1]}
            other = at.get(coordinates_key({**place, **declared}))
        else:
            alike = [each for each in arms if _preset(each) == _preset(arm)]
            other = alike[0]
        if other is not None and other is not arm:
            found[arm.entry.arm_id] = other
    return found


def _preset(arm: Arm) -> str:
    return arm.entry.coordinates[0].get("preset", "")


def figures(study: GridFile) -> list[tuple[Metric, str]]:
    """Return (metric, split) of every figure the table shows; "" where no split is read.

    What tells of the training stands with every split and is shown once.
    """
    return [
        (METRICS[name], split)
        for name in study.table.metrics
        for split in _splits(study, METRICS[name])
    ]


def _splits(study: GridFile, metric: Metric) -> tuple[str, ...]:
    splits = study.table.splits
    if metric.source != "evaluation":
        return ("",)
    if not metric.of_training:
        return splits
    declared = [each.split for each in study.declared.values() if each.metric == metric.name]
    return (declared[0] if declared else min(splits, key=lambda s: s.endswith("_attacked")),)


def values_by_seed(arm: Arm, metric: Metric, split: str) -> dict[int, float]:
    """Return the metric of every finished run of ``arm``; a speed is one figure for all seeds."""
    if metric.source == "speed":
        value = speed_value(arm, metric)
        return {} if value is None else dict.fromkeys(arm.records, value)
    if metric.source == "analysis":
        found = {seed: each.value(metric.name) for seed, each in arm.analyses.items()}
    else:
        found = {seed: _value(record, metric, split) for seed, record in arm.records.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _value(record: Record, metric: Metric, split: str) -> float | None:
    if metric.name == "dose":
        return record.dose
    if metric.source == "evaluation" and metric.path:
        return record.routing_value(metric.path.removeprefix("routing."), split)
    if metric.source == "evaluation":
        return record.value(metric.name, split)
    value: Any = record
    for name in metric.path.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


def speed_value(arm: Arm, metric: Metric) -> float | None:
    """Return the arm's figure of the speed pass, its median where it was timed; None if absent."""
    value = getattr(arm.speed, metric.name) if arm.speed is not None else None
    return value.median if isinstance(value, Quartiles) else value


def quartiles(arm: Arm, metric: Metric) -> Quartiles | None:
    """Return the quartiles of a timed figure; None for an exact or an absent one."""
    value = getattr(arm.speed, metric.name) if arm.speed is not None else None
    return value if isinstance(value, Quartiles) else None


def run_frame(results: Results) -> pd.DataFrame:
    """Return one row a run that has a record: axes, seed, run_id, status, and every figure.

    Figures are columns named "metric.split", or "metric" where no split is read; a run that did
    not finish has none.
    """
    rows = []
    for arm in results.arms:
        by_seed = {
            f"{metric.name}.{split}" if split else metric.name: values_by_seed(arm, metric, split)
            for metric, split in figures(results.study)
        }
        for seed, record in sorted({**arm.records, **arm.unfinished}.items()):
            row = {**arm.shown, "seed": seed, "run_id": record.run_id, "status": record.status}
            rows.append(row | {name: values.get(seed) for name, values in by_seed.items()})
    return pd.DataFrame(rows)
