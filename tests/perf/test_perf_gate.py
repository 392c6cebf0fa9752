"""The gate: its error rates on synthetic machines, and its limits."""

import numpy as np
import pytest

from moge_bench.perf import gate
from moge_bench.perf.policy import Policy
from moge_bench.perf.registry import Case
from moge_bench.perf.statistics import INCONCLUSIVE, PASS, REGRESSION, overall

CASES = [Case("router", 64, 16, k, 3, threads=1) for k in (1, 2, 3)]
POLICY = Policy()


def machine(seed: int, *, process: float, block: float, slowdown: float = 0.0, shared: float = 0.5):
    """A synthetic machine: log ratios of a generation = process effect + heavy-tailed blocks.

    ``process`` is the standard deviation between processes, of which the share ``shared`` is
    common to all cases of a generation; ``block`` that within one. One block in ten is hit by a
    burst of other load, ten times as large.
    """
    rng = np.random.default_rng(seed)

    def blocks(centre: float) -> list[float]:
        burst = np.where(rng.random(POLICY.blocks) < 0.1, 10.0, 1.0)
        return list(centre + rng.normal(0, block, POLICY.blocks) * burst)

    def generation(samples):
        common = rng.normal(0, process * np.sqrt(shared), 3)
        for mine in samples.values():
            base, twin, head = common + rng.normal(0, process * np.sqrt(1 - shared), 3)
            mine.twin.append(blocks(twin - base))
            mine.head.append(blocks(slowdown + head - (base + twin) / 2))

    return generation


def verdicts(trials: int, **settings) -> list[str]:
    found = []
    for seed in range(trials):
        decisions, _ = gate.compare_times(
            CASES, POLICY, machine(seed, **settings), lambda message: None
        )
        found.append(overall(decisions))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("process", "block"), [(0.01, 0.01), (0.0, 0.02), (0.02, 0.002)])
def test_equal_builds_are_not_called_a_regression(process, block):
    found = verdicts(60, process=process, block=block)
    # The policy promises 1 in 1000 runs: 0 expected in 60, and a chance of 0.06 to see one.
    assert found.count(REGRESSION) <= 1
    assert found.count(PASS) >= 55


def test_five_percent_is_seen_on_a_quiet_machine():
    # Spread 0.5 %: after 4 generations the threshold is t(12, 1 - 4.2e-5) = 5.8 * 0.7 / 2 = 2 %.
    assert verdicts(30, process=0.005, block=0.005, slowdown=np.log(1.05)) == [REGRESSION] * 30


@pytest.mark.slow
def test_a_noisy_machine_is_inconclusive_not_silent():
    # 10 % between processes: no slowdown of 10 % could be seen, so nothing may pass.
    assert verdicts(10, process=0.1, block=0.02).count(PASS) == 0


def test_more_pairs_are_asked_for_up_to_the_limit():
    asked, calls = [], []
    real = machine(0, process=0.1, block=0.02)

    def generation(samples):
        calls.append(len(samples))
        real(samples)

    decisions, _ = gate.compare_times(CASES, POLICY, generation, asked.append)
    assert overall(decisions) == INCONCLUSIVE
    assert len(calls) == POLICY.max_generations == 32
    assert len(asked) == POLICY.looks == 8 and "more pairs" in asked[0]
    assert any("inconclusive" in str(decision) for decision in decisions)


def test_decided_cases_are_not_measured_again():
    rng, seen = np.random.default_rng(0), []

    def generation(samples):
        seen.append(len(samples))
        for case, mine in samples.items():
            spread = 0.2 if case is CASES[0] else 0.001
            mine.twin.append(list(rng.normal(rng.normal(0, 0.001), 0.001, 20)))
            mine.head.append(list(0.002 + rng.normal(0, spread, 20)))

    gate.compare_times(CASES, POLICY, generation, lambda message: None)
    assert seen[0] == 3 and seen[-1] < 3


@pytest.mark.parametrize(("slow", "verdict"), [(4, PASS), (8, REGRESSION)])
def test_a_regression_must_be_seen_twice(slow, verdict):
    rng, generations = np.random.default_rng(0), []

    def generation(samples):
        generations.append(list(samples))
        for mine in samples.values():
            mine.twin.append(list(rng.normal(rng.normal(0, 0.005), 0.005, 20)))
            slower = np.log(1.1) if len(generations) <= slow else 0.0
            mine.head.append(list(slower + rng.normal(0, 0.005, 20)))

    decisions, samples = gate.compare_times(CASES[:1], POLICY, generation, lambda message: None)
    assert [d.verdict for d in decisions] == [verdict] and len(generations) == 8
    # What was seen first and taken back is kept, to be logged.
    cleared = samples[CASES[0]].cleared
    assert cleared == (None if slow == 8 else pytest.approx(1.1, abs=0.01))
    assert decisions[0].ratio == pytest.approx(1.1 if slow == 8 else 1.0, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"blocks": 3}, "blocks must be at least 4"), ({"generations": 1}, "at least 2"),
     ({"generations": 33}, "at most max_generations"), ({"resolution": 0.0}, "resolution")],
)  # fmt: skip
def test_a_bad_policy_names_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        Policy(**arguments)
