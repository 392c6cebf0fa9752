import numpy as np
import pytest
import torch
from probe_samples import make_layer, make_probe, random_scores, values

from moge_bench.analysis.invariance import agreement, group_overlap, measure, score_cosine
from moge_bench.analysis.maps import Map

PLACE = Map(8, 8, "torus")
# What two of its experts share on average: of the 63 others 4 are one step away and share 6 of 12
# groups, 4 diagonally 4 of 14, 4 two steps 3 of 15, 8 a knight's move 2 of 16, 4 at (2, 2) 1 of 17.
ANYWHERE = (4 * 6 / 12 + 4 * 4 / 14 + 4 * 3 / 15 + 8 * 2 / 16 + 4 * 1 / 17) / 63


def measured(before, after, place=PLACE, top_k=1, **probe):
    after = torch.as_tensor(after, dtype=torch.float32)
    layer = make_layer(before, place, top_k, **{
        "shift_1.scores": after, "shift_1.experts": after.topk(top_k).indices.to(torch.int16),
    })  # fmt: skip
    return measure(layer, make_probe(len(after), transformations=["shift_1"], **probe))


def test_what_nothing_changes_survives():
    scores = random_scores(400, 64)
    found = values(measured(scores, scores, top_k=2))
    assert found == {
        "invariance_agreement": 1,
        "invariance_cosine": 1,
        "invariance_cosine_corrected": 1,
    }  # no choice is lost to any group


def test_other_tokens_routing_is_chance():
    found = values(measured(random_scores(2000, 64), random_scores(2000, 64, seed=1)))
    # 1/64 of 2,000 agree by chance, give or take .003. The raw cosine is well above 0.
    assert abs(found["invariance_agreement"]) < 0.01
    assert abs(found["invariance_cosine_corrected"]) < 0.02 < 0.3 < found["invariance_cosine"]
    assert abs(found["invariance_group_excess"]) < 0.01


def test_agreement_by_hand():
    before = np.array([[0], [0], [1], [1]])
    after = np.array([[0], [1], [1], [1]])
    # Three of four agree; chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2: (3/4 - 1/2) / (1 - 1/2).
    assert agreement(before, after, 4) == pytest.approx(0.5)


def test_agreement_of_two_choices_does_not_ask_for_their_order():
    before, after = np.array([[0, 1], [2, 3]]), np.array([[1, 0], [3, 0]])
    # 3 of 4 choices agree. Chance: shares 1/2 each, and 1, 1/2, 0, 1/2: (1/2 + 1/4 + 1/4) / 2.
    assert agreement(before, after, 4) == pytest.approx((3 / 4 - 1 / 2) / (1 / 2))


def test_a_collapsed_router_agrees_trivially_and_is_given_nothing():
    collapsed = torch.full((100, 64), 0.001)
    collapsed[:, 7] = 0.9
    names = values(measured(collapsed, collapsed))
    assert "invariance_agreement" not in names
    assert "invariance_cosine_corrected" not in names
    assert names["invariance_cosine"] == 1


def test_cosine_by_hand():
    before = np.array([[1.0, 0.0], [0.0, 2.0]])
    after = np.array([[3.0, 0.0], [1.0, 1.0]])
    # (1 + 1/sqrt 2) / 2; chance (1/2, 1/2) . ((1 + 1/sqrt 2) / 2, 1/sqrt 2 / 2).
    cosine, chance = (1 + 2**-0.5) / 2, ((1 + 2**-0.5) / 2 + 2**-0.5 / 2) / 2
    found = score_cosine(before, after)
    assert found == pytest.approx((cosine, (cosine - chance) / (1 - chance)))


class TestGroups:
    def test_moves_to_a_neighbour_keep_half_of_the_groups(self):
        before = np.arange(64)[:, None]
        after = (before // 8) * 8 + (before + 1) % 8  # one step to the right, round the torus
        overlap, permuted = group_overlap(before, after, PLACE)
        assert overlap == pytest.approx(1 / 2)  # 6 of 12 groups
        assert permuted.mean() == pytest.approx(ANYWHERE, abs=0.003)

    def test_only_lost_choices_count(self):
        # 0 stays; 10 becomes 11, its neighbour. How much else stays makes no difference.
        before, after = np.array([[0, 10]]), np.array([[11, 0]])
        for stays in (0, 50):
            rows = [np.concatenate([each, np.tile([3, 4], (stays, 1))])
                    for each in (before, after)]  # fmt: skip
            assert group_overlap(*rows, PLACE)[0] == pytest.approx(1 / 2)
        assert np.isnan(group_overlap(before, before, PLACE)[0])

    def test_excess_and_its_p(self):
        before = torch.eye(64).repeat(4, 1)
        steps = torch.roll(torch.eye(64).reshape(64, 8, 8), 1, 2).reshape(64, 64).repeat(4, 1)
        found = values(measured(before, steps))
        assert found["invariance_group_excess"] == pytest.approx(1 / 2 - ANYWHERE, abs=0.003)
        assert found["invariance_group_excess_p"] == 1 / 500

    def test_moves_to_anywhere_are_no_more_than_chance(self):
        ps = []
        for seed in range(20):
            after = np.random.default_rng(seed).integers(64, size=(200, 1))
            overlap, permuted = group_overlap(np.arange(200)[:, None] % 64, after, PLACE)
            ps.append((permuted >= overlap).mean())
        assert 0.3 < np.mean(ps) < 0.7  # mean 1/2, standard error .065


def test_replaced_tokens_are_not_compared():
    before, after = random_scores(400, 64), random_scores(400, 64)
    after[::2] = random_scores(200, 64, seed=3)
    replaced = torch.arange(400) % 2 == 0
    found = values(measured(before, after, **{"shift_1.replaced": replaced}), "shift_1")
    assert found["invariance_agreement"] == 1


def test_tokens_before_the_first_replaced_one_of_a_window_are_not_compared():
    """A causal model cannot know there: the third of four is replaced, and the fourth compared."""
    before, after = random_scores(400, 64), random_scores(400, 64)
    after[3::4] = random_scores(100, 64, seed=3)
    replaced = torch.arange(400) % 4 == 2
    found = values(measured(before, after, **{"shift_1.replaced": replaced}), "shift_1")
    assert abs(found["invariance_agreement"]) < 0.1
