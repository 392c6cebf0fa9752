import math
import random

import numpy as np
import pytest
from scipy import stats

from moge_bench.study.contrasts import (
    Sample,
    Scale,
    contrast,
    describe,
    equivalence,
    holm,
    needed_seeds,
    paired,
    smallest_effect,
)

POINTS, RATIO = Scale(), Scale(ratio=True)


def test_mean_spread_and_interval_of_three():
    # 1, 2, 3: mean 2, spread 1, t(0.975, 2) = 4.3027, half width 4.3027 / sqrt(3) = 2.4841.
    sample = describe([1.0, 2.0, 3.0])
    assert (sample.mean, sample.spread, sample.n) == (2.0, 1.0, 3)
    assert sample.high - sample.mean == pytest.approx(2.4841, abs=1e-4)
    assert sample.mean - sample.low == pytest.approx(2.4841, abs=1e-4)
    # t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees: p = 1 - 3.4641 / sqrt(3.4641^2 + 2) = 0.0742.
    assert sample.p == pytest.approx(0.0742, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "sample"),
    [
        ([], None),
        ([5.0], Sample(5.0, None, 1)),
        ([1.0, 3.0], Sample(2.0, pytest.approx(2**0.5), 2)),  # two seeds make no interval
        ([4.0, 4.0, 4.0], Sample(4.0, 0.0, 3)),  # nor do values that happen to agree
    ],
)
def test_few_or_equal_values_have_no_interval(values, sample):
    assert describe(values) == sample


def test_differences_are_paired_by_seed():
    # Seeds 0 and 2 have both: 3 - 1 = 2 and 7 - 5 = 2.
    found = paired({0: 3.0, 1: 9.0, 2: 7.0}, {0: 1.0, 2: 5.0, 3: 0.0}, POINTS)
    assert found.sample == Sample(2.0, 0.0, 2)
    assert found.values == {0: 2.0, 2: 2.0}
    assert paired({0: 1.0}, {1: 1.0}, POINTS) is None


def test_a_ratio_is_a_difference_of_logarithms_told_in_percent():
    # 110 / 100, 121 / 110 and 133.1 / 121 are 1.1: +10 % in every seed.
    found = paired({0: 110.0, 1: 121.0, 2: 133.1}, {0: 100.0, 1: 110.0, 2: 121.0}, RATIO)
    assert (found.sample.mean, found.sample.spread) == (pytest.approx(10.0), 0.0)
    # 200 / 100 and 50 / 100: log 2 and -log 2, mean 0. Of differences it would be 25.
    assert paired({0: 200.0, 1: 50.0}, {0: 100.0, 1: 100.0}, RATIO).sample.mean == 0.0
    # Ratios 1, e^0.1, e^0.2: mean 0.1, spread 0.1; e^0.1 = 1.10517; -+ 4.3027 0.1 / sqrt(3) =
    # 0.24841: e^-0.14841 = 0.86208 and e^0.34841 = 1.41681.
    found = paired({i: math.exp(i / 10) for i in range(3)}, dict.fromkeys(range(3), 1.0), RATIO)
    shown = (found.sample.mean, found.sample.low, found.sample.high)
    assert shown == pytest.approx((10.517, -13.792, 41.681), abs=1e-3)
    with pytest.raises(ValueError, match=r"a ratio needs values above 0, got 1\.0 and 0\.0"):
        paired({0: 1.0}, {0: 0.0}, RATIO)


def test_the_smallest_effect_is_what_n_seeds_show_with_80_percent_power():
    # For a paired t test, two-sided at 0.05: dz = 0.9963 at n = 10, 0.5292 at n = 30 (tables of
    # Cohen 1988 give 0.80 power there). Spread 2 doubles it.
    def of(n, spread):
        signs = {seed: (-1) ** seed for seed in range(n)}  # spread sqrt(n / (n - 1))
        scale = spread / math.sqrt(n / (n - 1))
        return contrast({seed: sign * scale for seed, sign in signs.items()}, POINTS, 1.0)

    assert of(10, 1.0).smallest_effect == pytest.approx(0.9963, abs=1e-3)
    assert of(30, 2.0).smallest_effect == pytest.approx(2 * 0.5292, abs=1e-3)
    assert contrast({0: 1.0, 1: 2.0}, POINTS, 2.0).smallest_effect is None
    assert contrast({0: 1.0, 1: 1.0, 2: 1.0}, POINTS, 1.0).smallest_effect is None


def test_in_a_family_an_effect_must_be_larger_to_be_shown():
    # Power by simulation of t tests at 0.05 / 12, of ten values each: 0.80 at this effect.
    sample = describe([-1.0, 1.0] * 5)
    shown = smallest_effect(sample, POINTS, 0.05 / 12)
    effect = shown / sample.spread
    draws = np.random.default_rng(0).normal(effect, 1.0, (20_000, 10))
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05 / 12).mean()
    assert found == pytest.approx(0.8, abs=0.01)
    assert smallest_effect(sample, POINTS) < shown
    # Three seeds at a small level: no bound of a solver, the effect itself.
    few = describe([-1.0, 0.0, 1.0])
    assert smallest_effect(few, POINTS, 0.05 / 100) == pytest.approx(32.755, abs=1e-2)


def test_more_seeds_are_never_needed_for_a_larger_margin():
    for level in (0.05, 0.05 / 12):
        needed = [needed_seeds(margin / 20, level) for margin in range(6, 400)]
        assert needed == sorted(needed, reverse=True) and needed[-1] == 3


def test_equivalence_is_two_one_sided_tests():
    # 0.1, 0.2, 0.3: mean 0.2, spread 0.1, standard error 0.05774. Margin 0.5: t = (0.5 - 0.2) /
    # 0.05774 = 5.196 with 2 degrees, one-sided p = (1 - 5.196 / sqrt(5.196^2 + 2)) / 2 = 0.0176.
    # 90 % interval: 0.2 -+ t(0.95, 2) 0.05774 = 0.2 -+ 2.9200 0.05774 = 0.0314 to 0.3686.
    found = equivalence([0.1, 0.2, 0.3], 0.5, POINTS)
    assert found.p == pytest.approx(0.0176, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((0.0314, 0.3686), abs=1e-4)
    # At the end of that interval p is 0.05.
    assert equivalence([0.1, 0.2, 0.3], found.high, POINTS).p == pytest.approx(0.05)
    assert equivalence([0.1, 0.2], 0.5, POINTS) is None
    assert equivalence([0.2, 0.2, 0.2], 0.5, POINTS) is None


def test_the_margin_of_a_ratio_is_one_of_percent():
    # Logarithms 0.01, 0.02, 0.03 are a tenth of those above; log 1.05127 = 0.05.
    found = equivalence([0.01, 0.02, 0.03], 5.1271, RATIO)
    assert found.p == pytest.approx(0.0176, abs=1e-4)
    assert found.high == pytest.approx(100 * math.expm1(0.03686), abs=1e-2)


@pytest.mark.parametrize(
    ("margin", "seeds"),
    [
        # z(0.975) + z(0.8) = 2.80 for a difference, z(0.95) + z(0.9) = 2.93 for equivalence: about
        # (2.93 / margin)^2 seeds, and two more for Student's t.
        (0.5, 36), (1.0, 11), (0.1, 858), (0.01, 85_640),
        (100.0, 3), (0.001, None),
    ],
)  # fmt: skip
def test_the_seeds_that_would_decide(margin, seeds):
    assert needed_seeds(margin) == seeds
    if seeds is not None and margin <= 1:
        assert seeds == pytest.approx((2.926405 / margin) ** 2 + 2, abs=1)


def test_a_spread_of_rounding_alone_is_none():
    # The differences are 0.55, give or take 1e-14: as a spread that would make p = 0.
    found = paired({0: 78.65, 1: 10.3, 2: 0.7}, {0: 78.1, 1: 9.75, 2: 0.15}, POINTS)
    equal = found.sample
    assert len({78.65 - 78.1, 10.3 - 9.75, 0.7 - 0.15}) > 1
    assert (equal.mean, equal.spread, equal.p) == (pytest.approx(0.55), 0.0, None)
    assert describe([0.1 + 0.2, 0.3, 0.3]).low is None
    assert describe([1e-9, 2e-9, 3e-9]).low is not None


def test_holm_counts_the_tests_of_the_family():
    # Holm: the least of three p against 0.05 / 3 = 0.0167, the next against 0.025, then 0.05;
    # as adjusted values: 3 p, 2 p, p, each at least the one before.
    assert holm([0.016, 0.024, 0.049]) == pytest.approx([0.048, 0.048, 0.049])
    # 3 * 0.017 = 0.051; 2 * 0.024 is less, and no p may fall below that before it.
    assert holm([0.017, 0.024, 0.049]) == pytest.approx([0.051, 0.051, 0.051])
    assert holm([0.001, 0.03, 0.04]) == pytest.approx([0.003, 0.06, 0.06])
    # What has no p yet is a test to come, and counts: three are tested.
    assert holm([None, 0.024, 0.2]) == [None, pytest.approx(0.072), pytest.approx(0.4)]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_the_interval_covers_the_mean_95_percent_of_the_time():
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        sample = describe([generator.gauss(0, 1) for _ in range(4)])
        hits += sample.low <= 0 <= sample.high
    # Binomial(2000, 0.95): mean 1900, standard deviation 9.7; five of them are 49.
    assert abs(hits - 1900) < 49
