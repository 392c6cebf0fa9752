import numpy as np
import pytest
from probe_samples import values

from moge_bench.analysis.balance import balance


def test_equal_loads():
    assert values(balance(np.full(8, 5.0))) == {
        "balance_entropy": 1, "balance_max_over_mean": 1, "balance_min_over_max": 1,
        "balance_gini": 0, "balance_dead_share": 0,
    }  # fmt: skip


def test_one_expert_for_all():
    found = values(balance(np.array([0.0, 12, 0, 0])))
    # Gini (N - 1) / N; 12 / 3; three of four are dead.
    assert found == {
        "balance_entropy": 0, "balance_max_over_mean": 4, "balance_min_over_max": 0,
        "balance_gini": 0.75, "balance_dead_share": 0.75,
    }  # fmt: skip


def test_unequal_loads():
    found = values(balance(np.array([2.0, 1, 1, 0])))
    # Entropy of 1/2, 1/4, 1/4 is 1.5 bits of 2. Mean |difference| of ordered pairs, 16 of them:
    # 2 (1 + 1 + 2 + 0 + 1 + 1) / 16 = 3/4; half of it over the mean 1.
    assert found["balance_entropy"] == pytest.approx(0.75)
    assert found["balance_gini"] == pytest.approx(3 / 8)


def test_nothing_chosen_is_nothing_known():
    assert balance(np.zeros(4)) == []
