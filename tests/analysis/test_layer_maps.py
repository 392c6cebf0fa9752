import numpy as np
import pytest

from moge_bench.analysis.maps import Map


def test_distances_go_round_a_torus_and_not_over_a_border():
    # 0 1 2 3 4 / 5 6 7 8 9 / 10 ...: from the corner to (0, 4) and to (3, 3) of 4x5.
    torus, valid = Map(4, 5, "torus").distances, Map(4, 5, "valid").distances
    assert (torus[0, 4], torus[0, 18]) == (1, 2)  # max(1, 2): 3 columns are 2 the other way
    assert (valid[0, 4], valid[0, 18]) == (4, 3)
    assert (torus == torus.T).all() and (np.diag(torus) == 0).all()


@pytest.mark.parametrize(
    ("border", "corner", "inner"), [("torus", 8, 8), ("valid", 3, 8)]
)  # fmt: skip
def test_neighbours(border, corner, inner):
    first, _ = Map(4, 4, border).neighbours
    assert (np.sum(first == 0), np.sum(first == 5)) == (corner, inner)


def test_groups_are_those_of_the_loss():
    valid = Map(4, 4, "valid")
    assert valid.windows[0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert valid.membership.sum(1).reshape(4, 4).tolist() == [
        [1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]  # fmt: skip
    assert (Map(4, 4, "torus").membership.sum(1) == 9).all()
    assert Map(2, 4, "valid").group_size == 2  # 3x3 does not fit


def test_shared_groups():
    shared = Map(8, 8, "torus").shared_groups
    # h = 3, each expert in 9 groups: one step along a row shares 6 of 12, a diagonal one 4 of 14.
    assert shared[0, [0, 1, 9, 3]] == pytest.approx([1, 6 / 12, 4 / 14, 0])


@pytest.mark.parametrize("border", ["valid", "torus"])
def test_the_filter_of_a_group_sums_to_1(border):
    place = Map(4, 8, border)
    assert place.filter.shape == (32, 2 * 6 if border == "valid" else 32)
    assert place.filter.sum(0) == pytest.approx(np.ones(place.filter.shape[1]))
