"""Kneser-Ney against counts by hand; logistic regression on the shipped images."""

import numpy as np
import pytest

from moge_bench.study.anchors import KneserNey


def test_a_bigram_by_hand():
    # 0 1 0 1 0 2: bigrams 01 twice, 10 twice, 02 once. Discount n1 / (n1 + 2 n2) = 1 / 5.
    # Below: tokens that follow one, two or one different tokens: 0: {1}, 1: {0}, 2: {0}: all once,
    # discount 3 / 3 = 1, so P_1 = 0 + 1 * 3 / 3 / 4 = 1/4 with V = 4.
    model = KneserNey(np.array([0, 1, 0, 1, 0, 2]), 4, order=2)
    # P(1 | 0) = (2 - 0.2) / 3 + 0.2 * 2 / 3 / 4 = 0.6 + 0.0333; P(3 | 0) = 0.0333; P(0 | 3) = 1/4.
    found = model.probabilities(np.array([0, 1, 0, 3, 0]))
    assert found == pytest.approx([0.6 + 0.1 / 3, 0.9 + 0.1 / 4, 0.1 / 3, 0.25])


@pytest.mark.parametrize("order", [2, 3, 5])
def test_probabilities_sum_to_one_after_any_context(order):
    rng = np.random.default_rng(0)
    model = KneserNey(rng.integers(0, 6, 400), 7, order)
    for context in rng.integers(0, 7, (20, order - 1)):
        after = [model.probabilities(np.append(context, word))[-1] for word in range(7)]
        assert sum(after) == pytest.approx(1.0)
        assert min(after) > 0


def test_longer_contexts_help_where_there_is_something_to_see():
    # 0 0 1 again and again: a bigram cannot tell the first 0 from the second, a trigram can.
    text = np.array([0, 0, 1] * 200)
    assert KneserNey(text, 2, 3).cross_entropy(text) < 0.05
    # Half of the time after a 0 (which is two thirds of the tokens) log 2: 0.46 nats.
    assert KneserNey(text, 2, 2).cross_entropy(text) == pytest.approx(2 / 3 * np.log(2), rel=0.05)


def test_too_long_a_key_is_refused():
    with pytest.raises(ValueError, match=r"5 \* 13 bits|order \* 13 bits"):
        KneserNey(np.arange(10), 8000, order=5)
