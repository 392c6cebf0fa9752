import random

import pytest

from moge_bench.study.contrasts import Sample, describe, paired_difference, survives


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
    sample = paired_difference({0: 3.0, 1: 9.0, 2: 7.0}, {0: 1.0, 2: 5.0, 3: 0.0})
    assert sample == Sample(2.0, 0.0, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_spread_of_rounding_alone_is_none():
    # The differences are 0.55, give or take 1e-14: as a spread that would make p = 0.
    equal = paired_difference({0: 78.65, 1: 10.3, 2: 0.7}, {0: 78.1, 1: 9.75, 2: 0.15})
    assert len({78.65 - 78.1, 10.3 - 9.75, 0.7 - 0.15}) > 1
    assert (equal.mean, equal.spread, equal.p) == (pytest.approx(0.55), 0.0, None)
    assert describe([0.1 + 0.2, 0.3, 0.3]).low is None
    assert describe([1e-9, 2e-9, 3e-9]).low is not None


def test_holm_counts_the_tests_of_the_family():
    # Holm: the least of three p against 0.05 / 3 = 0.0167, the next against 0.025, then 0.05.
    assert survives([0.016, 0.024, 0.049]) == [True, True, True]
    assert survives([0.017, 0.024, 0.049]) == [False, False, False]
    assert survives([0.001, 0.03, 0.04]) == [True, False, False]
    # What has no p is no test: two are left, the least against 0.025.
    assert survives([None, 0.024, 0.2]) == [False, True, False]
    assert survives([None]) == [False]


def test_the_interval_covers_the_mean_95_percent_of_the_time():
    generator = random.Random(0)
    hits = 0
    for _ in range(2000):
        sample = describe([generator.gauss(0, 1) for _ in range(4)])
        hits += sample.low <= 0 <= sample.high
    # Binomial(2000, 0.95): mean 1900, standard deviation 9.7; five of them are 49.
    assert abs(hits - 1900) < 49
