"""From the probes and records of a results folder to its analyses, each made once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moge_bench.analysis import (
    balance,
    diversity,
    dose,
    dynamics,
    invariance,
    specialisation,
    topography,
)
from moge_bench.analysis.pictures import draw
from moge_bench.analysis.probe import Probe, read_probe
from moge_bench.analysis.store import VERSION, Analysis, AnalysisStore, SeedNull
from moge_bench.runs.record import Record, label
from moge_bench.runs.store import RecordStore


@dataclass(frozen=True)
class Report:
    """What became of one file: "written", "there already"; with a reason "skipped" or "failed"."""

    name: str
    outcome: str
    reason: str = ""


def analyze(results: Path) -> Iterator[Report]:
    """Analyse every finished run in ``results`` that has a probe; yield a report for each.

    An analysis that is there stays, unless it has older definitions or its run was trained anew.
    Then every arm with two such runs. One file that cannot be read does not stop the others.
    """
    records, store = RecordStore(results), AnalysisStore(results)
    arms: dict[str, list[Record]] = defaultdict(list)
    for path in sorted((results / "probes").glob("*.safetensors")):
        try:
            record = records.read(path.stem)
            if record is None or record.status != "finished":
                yield Report(path.stem, "skipped", "it has no record of a finished run")
                continue
            yield _one_run(record, path, store)
            arms[record.settings.arm_id].append(record)
        except ValueError as error:
            yield Report(path.stem, "failed", str(error))
    for arm_id, runs in sorted(arms.items()):
        if len(runs) > 1:
            try:
                first, second = sorted(runs, key=lambda record: (record.seed, record.run_id))[:2]
                yield _one_arm(arm_id, (first, second), results, store)
            except ValueError as error:
                yield Report(arm_id, "failed", str(error))


def _one_run(record: Record, path: Path, store: AnalysisStore) -> Report:
    found = store.read(record.run_id)
    name = f"{record.run_id} {label(record.settings)}"
    code = record.code.digest
    if found is not None and found.version >= VERSION and found.code == code:
        return Report(name, "there already")
    store.write(analyze_run(record, read_probe(path)))
    return Report(name, "written")


def analyze_run(record: Record, probe: Probe) -> Analysis:
    """Return every measurement of one finished run."""
    if probe.header.run_id != record.run_id:
        raise ValueError(
            f"{probe.path} is of the run {probe.header.run_id}; a probe's file has the name of "
            "its run: delete it"
        )
    loads = _loads(record)
    numbers, maps = [*dose.measure_training(record), *balance.measure(record)], []
    for layer in probe.layers():
        load = loads[layer.block]
        numbers += dose.measure(layer)
        numbers += diversity.measure(layer, probe.header.activation, load)
        numbers += specialisation.measure(layer, probe)
        numbers += topography.measure(layer, probe, np.asarray(load, dtype=np.float64))
        numbers += invariance.measure(layer, probe)
        numbers += dynamics.measure(layer)
        maps.append(draw(layer, probe, load))
    return Analysis(
        version=VERSION, run_id=record.run_id, code=record.code.digest, numbers=numbers, maps=maps
    )


def _loads(record: Record) -> dict[int, list[int]]:
    """Return the choices on the validation split of each expert, by block."""
    return {each["block"]: each["load"] for each in record.routing
            if each["split"] == balance.SPLIT}  # fmt: skip


def _one_arm(
    arm_id: str, pair: tuple[Record, Record], results: Path, store: AnalysisStore
) -> Report:
    runs = [record.run_id for record in pair]
    found = store.read_seeds(arm_id)
    name = f"{arm_id} two seeds"
    if found is not None and found.version >= VERSION and found.runs == runs:
        return Report(name, "there already")
    first, second = (read_probe(results / "probes" / f"{run}.safetensors") for run in runs)
    loads, other_loads = (_loads(record) for record in pair)
    numbers = [
        number
        for a, b in zip(first.layers(), second.layers(), strict=True)
        for number in diversity.measure_between(
            (a, b), first.header.activation, (loads[a.block], other_loads[b.block])
        )
    ]
    store.write_seeds(SeedNull(version=VERSION, arm_id=arm_id, runs=runs, numbers=numbers))
    return Report(name, "written")
