"""The power curve from noise made here; measuring it is for a quiet machine."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import power_curve

from moge_bench.perf import registry
from moge_bench.perf.policy import Policy
from moge_bench.perf.revisions import Revision

CASES = registry.select("gate", power_curve.CASES)
POLICY = Policy(blocks=8)


def quiet(generations=32, spread=0.004, seed=0):
    """Generations of equal builds whose ratios are normal around 0."""
    rng = np.random.default_rng(seed)

    def one():
        return (rng.normal(0, spread) + rng.normal(0, 0.002, POLICY.blocks)).tolist()

    return [{c.name: {"twin": one(), "head": one()} for c in CASES} for _ in range(generations)]


@pytest.fixture(scope="module")
def rows():
    found = power_curve.curve(quiet(), CASES, POLICY, [0, 1, 10], runs=12)
    return {(row["percent"], row["case"]): row for row in found}


def test_what_is_large_is_caught_and_nothing_is_not(rows):
    assert rows[10, power_curve.ANY]["caught"] == 12
    assert rows[0, power_curve.ANY]["caught"] == 0
    for case in CASES:
        assert rows[10, case.name]["caught"] == 12
        # A hundredth is far below what four generations of this noise can tell from none.
        assert rows[1, case.name]["caught"] < 6
        assert 1.01 < rows[0, case.name]["sees"] < 1.10


def test_a_slowdown_is_added_to_head_alone(monkeypatch):
    seen = {}

    def compare(cases, policy, generation, progress):
        samples = power_curve.measure.new_samples(cases)
        generation(samples)
        seen.update(samples)
        return [], samples

    monkeypatch.setattr(power_curve.gate, "compare_times", compare)
    noise = quiet()
    power_curve.replay(noise, CASES, POLICY, 5, np.array([7]))
    for case in CASES:
        assert seen[case].twin == [noise[7][case.name]["twin"]]
        np.testing.assert_allclose(
            np.exp(seen[case].head[0]), 1.05 * np.exp(noise[7][case.name]["head"])
        )


def test_a_run_may_take_more_generations_than_were_measured():
    order = power_curve._order(32, Policy(), seed=1)
    assert len(order) >= 64 and sorted(order[:32]) == list(range(32))


def test_neighbours_that_drift_are_correlated():
    name = CASES[0].name
    drift = [{name: {"head": [float(i)]}} for i in range(32)]
    assert power_curve.neighbours(drift, name) == pytest.approx(1)


def test_an_interrupted_measurement_goes_on_and_the_page_tells(tmp_path, monkeypatch, capsys):
    timed, noise = [], quiet()
    monkeypatch.setattr(
        power_curve.revisions, "build", lambda *args: Revision("head", "c1", tmp_path, "k")
    )
    monkeypatch.setattr(power_curve.rows, "environment", lambda device: {"device": "EPYC"})

    def one_generation(tree, cases, policy):
        if len(timed) == 20:
            timed.append("killed")
            raise KeyboardInterrupt
        timed.append(tree)
        return noise[len(timed) - 2]

    monkeypatch.setattr(power_curve, "one_generation", one_generation)
    monkeypatch.setattr(sys, "argv", [
        "x", "--generations", "32", "--runs", "2", "--percents", "10", "--output", str(tmp_path),
        "--cache", str(tmp_path),
    ])  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        power_curve.main()
    power_curve.main()
    assert len(timed) == 33  # 20, the one that was cut off, 12
    assert len(json.loads((tmp_path / "gate_power.json").read_text())["noise"]) == 32
    page = (tmp_path / "gate_power.md").read_text()
    assert "Share of 2 runs" in page and "32 measured generations" in page
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == [
        "| planted", "| 0 %", "| 10 %", "| sees", "| neighbours"
    ]  # fmt: skip
    assert "| 10 % | 100.0% | 100.0% | 100.0% | 100.0% |" in page


def test_too_few_generations_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--generations", "8"])
    with pytest.raises(SystemExit):
        power_curve.main()
    assert "--generations must be at least 32" in capsys.readouterr().err
