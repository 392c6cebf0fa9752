"""Statistics of the gate: by hand, and by simulation with fixed seeds."""

import math

import numpy as np
import pytest

from moge_bench.perf import statistics as st


def decision(verdict: str) -> st.Decision:
    return st.Decision("c", "time", verdict, 1.0, 1.0, 1.0, 1.0, 1.0, "", 1)


def test_midmean_by_hand():
    # 8 values, a quarter (2) cut at each end: (3 + 4 + 5 + 6) / 4 = 4.5, whatever the outliers.
    assert st.midmean([1, 2, 3, 4, 5, 6, 7, 1000]) == 4.5


def test_block_log_ratio_cancels_linear_drift():
    # Palindrome A B B A, each call 1 s slower than the last: A = 10, 13; B = 11, 12. In logs:
    # (ln 11 + ln 12)/2 - (ln 10 + ln 13)/2 = 0.5 ln(132/130) = 0.0076, not ln(11/10) = 0.095.
    assert st.block_log_ratio([10, 13], [11, 12]) == pytest.approx(0.5 * math.log(132 / 130))


def test_interval_of_equal_blocks_is_a_point():
    interval = st.ratio_interval([math.log(1.5)] * 6)
    assert (interval.ratio, interval.low, interval.high) == pytest.approx((1.5, 1.5, 1.5))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        interval = st.ratio_interval(rng.normal(math.log(1.1), 0.05, 24), seed=trial)
        covered += interval.low <= 1.1 <= interval.high
    # Binomial(200, 0.95): 190 expected, standard deviation 3.1; small samples lose a little.
    assert 178 <= covered <= 199


@pytest.mark.parametrize("blocks", [[], [0.0, 0.1, 0.2], [0.0, 0.1, 0.2, math.nan]])
def test_interval_refuses_what_it_cannot_resample(blocks):
    with pytest.raises(ValueError, match="at least 4 finite blocks"):
        st.ratio_interval(blocks)


def test_noise_takes_the_larger_of_own_and_pooled_spread():
    # own rms of case 0: 0.01; of case 1: 0.03; pooled: sqrt((0.01^2 + 0.03^2)/2) = 0.02236.
    per_case = [[0.01, -0.01], [0.03, -0.03]]
    quiet, loud = (st.noise_from_generations(per_case, case) for case in (0, 1))
    assert quiet.spread == pytest.approx(math.sqrt(0.0005))
    assert loud.spread == pytest.approx(0.03)


def test_threshold_by_hand():
    # Student's t with 4 degrees of freedom: 97.5 % at 2.776. Spread 0.01, 4 generations:
    # 2.776 * 0.01 / sqrt(4) = 0.01388.
    assert st.Noise(0.01, 4).threshold(4, 0.025) == pytest.approx(0.01388, abs=1e-5)


@pytest.mark.parametrize(
    ("shift", "spread", "resolution", "verdict"),
    [
        (0.0, 0.001, 0.1, st.PASS),  # threshold t(4, 99.9 %) = 7.17 * 0.001 / 2 = 0.0036
        (0.05, 0.001, 0.1, st.REGRESSION),
        (-0.05, 0.001, 0.1, st.PASS),  # faster is no regression
        (0.0035, 0.001, 0.1, st.INCONCLUSIVE),  # its interval straddles 0.0036
        (0.0, 0.1, 0.1, st.INCONCLUSIVE),  # detectable exp(0.36 + 0.1) = 1.58 > 1.1
        (0.5, 0.1, 0.1, st.REGRESSION),  # even a noisy machine sees 65 %
    ],
)
def test_verdicts_on_time(shift, spread, resolution, verdict):
    blocks = [list(shift + np.linspace(-0.002, 0.002, 20)) for _ in range(4)]
    got = st.decide_time("c", blocks, st.Noise(spread, 4), alpha=1e-3, resolution=resolution)
    assert got.verdict == verdict
    assert "c" in str(got) and f"{got.ratio:.4f}" in str(got) and f"{got.low:.4f}" in str(got)


def test_interval_alone_is_not_enough_for_a_regression():
    # Blocks of these processes agree on +2 %, but fresh processes of equal builds differ by 3 %.
    blocks = [[0.02, 0.0201, 0.0199, 0.02] * 5] * 4
    got = st.decide_time("c", blocks, st.Noise(0.03, 12), alpha=1e-3, resolution=1.0)
    assert got.low > 1 and got.verdict != st.REGRESSION


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [(1000, 1000, st.PASS), (1000, 1020, st.PASS), (1000, 1021, st.REGRESSION),
     (1000, 1050, st.REGRESSION), (1000, 500, st.PASS)],
)  # fmt: skip
def test_verdicts_on_instructions(base, head, verdict):
    assert st.decide_instructions("c", base, head).verdict == verdict


def test_overall_is_the_worst():
    p, r, i = (decision(v) for v in (st.PASS, st.REGRESSION, st.INCONCLUSIVE))
    assert st.overall([p, i, r]) == st.REGRESSION
    assert st.overall([p, i]) == st.INCONCLUSIVE
    assert st.overall([p, p]) == st.PASS
    with pytest.raises(ValueError, match="at least one"):
        st.overall([])
