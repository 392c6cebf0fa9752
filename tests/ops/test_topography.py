"""The map, its groups and their filter, against hand arithmetic."""

import math

import pytest
import torch

from moge_bench.ops.topography import (
    Topography,
    default_map_shape,
    gaussian_taps,
    group_filter,
    resolve_map_shape,
    taps_on_device,
)


@pytest.mark.parametrize(
    ("num_experts", "shape"),
    [(1, (1, 1)), (7, (1, 7)), (8, (2, 4)), (12, (3, 4)), (16, (4, 4)), (32, (4, 8)), (64, (8, 8)),
     (128, (8, 16)), (997, (1, 997)), (1000, (25, 40)), (1024, (32, 32))],
)  # fmt: skip
def test_the_default_map_is_the_factor_pair_closest_to_square(num_experts, shape):
    assert default_map_shape(num_experts) == shape


def test_every_default_map_holds_its_experts_and_none_is_squarer():
    for n in range(1, 1025):
        rows, cols = default_map_shape(n)
        assert rows * cols == n and rows <= cols
        assert not any(n % r == 0 for r in range(rows + 1, math.isqrt(n) + 1))


def test_gaussian_taps_of_three():
    # exp(-1/2) = 0.60653; 1 + 2 * 0.60653 = 2.21306; 0.60653 / 2.21306 = 0.27407
    taps = gaussian_taps(3, 1.0)
    assert torch.allclose(taps, torch.tensor([0.27407, 0.45186, 0.27407]).double(), atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, None])
@pytest.mark.parametrize("group_size", [1, 2, 3, 8])
def test_taps_made_on_a_device_are_those_of_the_cpu(group_size, sigma):
    made = taps_on_device(group_size, sigma, torch.device("cpu"))
    torch.testing.assert_close(made, gaussian_taps(group_size, sigma), rtol=1e-15, atol=1e-18)


def test_an_even_filter_is_off_centre():
    # h = 2: offsets u - 1 = -1, 0; exp(-1/2) / (1 + exp(-1/2)) = 0.60653 / 1.60653 = 0.37754
    assert torch.allclose(
        gaussian_taps(2, 1.0), torch.tensor([0.37754, 0.62246]).double(), atol=1e-5
    )


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("sigma", [None, 1e-300, 0.5, 1.0, 10.0, 1e300])
def test_the_filter_sums_to_one_and_is_the_outer_product(group_size, sigma):
    weights = group_filter(group_size, sigma)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-14)
    if sigma in (None, 1e300):
        assert torch.allclose(weights, torch.full_like(weights, 1 / group_size**2))
    elif sigma >= 0.5:
        u = torch.arange(group_size).double() - group_size // 2
        expected = torch.exp(-(u[:, None] ** 2 + u[None, :] ** 2) / (2 * sigma**2))
        assert torch.allclose(weights, expected / expected.sum())


@pytest.mark.parametrize(
    ("rows", "cols", "h", "stride", "border", "groups"),
    [
        (4, 8, 3, 1, "valid", (2, 6)),
        (4, 8, 3, 1, "torus", (4, 8)),
        (8, 8, 3, 2, "valid", (3, 3)),  # (8 - 3) // 2 + 1
        (8, 8, 3, 3, "torus", (3, 3)),  # starts 0, 3, 6
        (2, 4, 5, 1, "torus", (2, 4)),
        (4, 4, 4, 9, "valid", (1, 1)),
    ],
)
def test_number_of_groups(rows, cols, h, stride, border, groups):
    topo = Topography(rows, cols, h, stride, border)
    assert (topo.group_rows, topo.group_cols) == groups
    assert topo.num_groups == groups[0] * groups[1]


def test_scales():
    # 4x8, h = 3: P = 2 * 6 = 12
    scales = {r: Topography(4, 8, 3, reduction=r).scale(10) for r in (
        "token_mean", "official_image", "official_language")}  # fmt: skip
    assert scales["token_mean"] == pytest.approx(1 / 120)
    assert scales["official_image"] == pytest.approx(1 / (9 * 12))
    assert scales["official_language"] == pytest.approx(1 / 12)
    assert Topography(4, 8, 3).scale(0) == 0.0


def test_a_group_that_does_not_fit_names_the_largest_that_does():
    with pytest.raises(ValueError, match=r"group_size=3 does not fit the 2x4 map.*that fits is 2"):
        Topography(2, 4, 3)


def test_a_map_that_does_not_hold_the_experts_names_one_that_does():
    with pytest.raises(ValueError, match=r"map_shape=\(3, 5\).*num_experts=16.*\(4, 4\)"):
        resolve_map_shape((3, 5), 16)
