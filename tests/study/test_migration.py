"""The committed records were migrated, not trained again: every number of the old tables is there.

before_migration/ holds the CSV files that moge-bench 0.1 wrote from the same runs.
"""

import csv
from pathlib import Path

import pytest

from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.contrasts import MIN_SAMPLES, Scale, describe, paired
from moge_bench.study.frame import collect, figures, quartiles, values_by_seed
from moge_bench.study.manifest import manifest_path, read_manifest

RESULTS = Path(__file__).parents[2] / "results"
BEFORE = sorted((Path(__file__).parent / "before_migration").glob("*.csv"))
# The old table of Student's quantiles had four digits.
HALF_WIDTH = {"rel": 2e-4}


def same(old: str, new: float | None, **tolerance: float) -> bool:
    if old == "" or new is None:
        return old == "" and new is None
    return float(old) == pytest.approx(new, **(tolerance or {"rel": 1e-12}))


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_every_number_of_the_old_tables_is_found_again(path):
    manifest = read_manifest(manifest_path(RESULTS, path.stem))
    results = collect(manifest, RecordStore(RESULTS), SpeedStore(RESULTS))
    rows = list(csv.DictReader(path.open()))
    compared = 0
    assert len(rows) == len(results.arms) > 0
    for row, arm in zip(rows, results.arms, strict=True):
        assert {axis: row[axis] for axis in arm.shown} == {a: str(v) for a, v in arm.shown.items()}
        assert int(row["n"]) == len(arm.records)
        baseline = results.baselines.get(arm.entry.arm_id)
        assert row["baseline"] == (baseline.label if baseline else "-")
        for metric, split in figures(results.study):
            name = f"{metric.name}.{split}" if split else metric.name
            values = values_by_seed(arm, metric, split)
            other = values_by_seed(baseline, metric, split) if baseline else {}
            if metric.source == "speed":
                value = next(iter(values.values()), None)
                assert same(row[name], value)
                if (spread := quartiles(arm, metric)) is not None:
                    assert same(row[f"{name}.lower"], spread.lower)
                    assert same(row[f"{name}.upper"], spread.upper)
            else:
                sample = describe(list(values.values()))
                assert same(row[f"{name}.mean"], sample.mean)
                assert same(row[f"{name}.spread"], sample.spread, rel=1e-9, abs=1e-9)
            if metric.source == "evaluation" and other:
                difference = paired(values, other, Scale()).sample
                assert same(row[f"{name}.difference"], difference.mean, rel=1e-9, abs=1e-9)
                if difference.n >= MIN_SAMPLES and difference.spread:
                    half_width = (difference.high - difference.low) / 2
                    assert same(row[f"{name}.difference_half_width_95"], half_width, **HALF_WIDTH)
            compared += 1
    assert compared == len(rows) * len(figures(results.study))
