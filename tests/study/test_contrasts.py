import math

import pytest

from moge_bench.study.contrasts import Sample, describe, half_width_95, paired_difference


def test_mean_and_sample_standard_deviation_by_hand():
    # Mean 4; squared deviations 4 + 0 + 4 = 8; variance 8 / (3 - 1) = 4; spread 2.
    assert describe([2.0, 4.0, 6.0]) == Sample(4.0, 2.0, 3)


def test_one_value_has_no_spread_and_none_no_sample():
    assert describe([7.0]) == Sample(7.0, None, 1)
    assert describe([]) is None
    assert half_width_95(Sample(7.0, None, 1)) is None


def test_differences_are_paired_by_seed():
    # Seeds 1 and 2 have both: differences 1 and 3, mean 2, spread sqrt(2).
    sample = paired_difference({0: 9.0, 1: 11.0, 2: 23.0}, {1: 10.0, 2: 20.0, 3: 5.0})
    assert sample == Sample(2.0, pytest.approx(math.sqrt(2)), 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_interval_by_hand():
    # t(0.975, 2) = 4.303; 4.303 * 2 / sqrt(3) = 4.969.
    assert half_width_95(Sample(4.0, 2.0, 3)) == pytest.approx(4.969, abs=1e-3)


def test_interval_covers_the_mean_95_percent_of_the_time():
    import random

    generator = random.Random(0)
    hits = 0
    for _ in range(4000):
        sample = describe([generator.gauss(0, 1) for _ in range(4)])
        hits += abs(sample.mean) <= half_width_95(sample)
    # Binomial(4000, 0.95): mean 3800, standard deviation 13.8; five of them are 69.
    assert abs(hits - 3800) < 69
