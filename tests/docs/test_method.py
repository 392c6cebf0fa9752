"""Every number and claim of docs/method.md on the loss, computed from the reference in float64.

Legend: z scores of one token (N,), (r, c) map, h group side, P groups, c_e coverage of expert e.
"""

import itertools
import math
import re

import numpy as np
import pages as page
import pytest
import torch
from scipy.optimize import minimize

from moge_bench import group_norm
from moge_bench.ops.topography import Topography, default_map_shape, group_filter

ROUNDED = 5.1e-5  # half of the last of four decimals


def loss(scores, map_shape, border, **settings):
    """L_group of one token, h = 3 and sigma = 1 unless told."""
    return group_norm(
        scores.reshape(1, -1).double(), map_shape=map_shape, border=border, backend="reference",
        **{"group_size": 3, "sigma": 1.0, **settings},
    )  # fmt: skip


def one_hot_losses(map_shape, border):
    return [float(loss(row, map_shape, border)) for row in torch.eye(math.prod(map_shape))]


def least_loss(map_shape, border, seed):
    """Descend over the simplex; return the scores found and how far above the least they can be.

    L is convex in z, so L(y) >= L(z) + dL/dz (y - z) for every y, and the least of that over the
    simplex is at a corner of it: L(z) - least <= max_e dL/dz (z - onehot_e).
    """
    num_experts = math.prod(map_shape)

    def value_and_gradient(z):
        scores = torch.from_numpy(z).requires_grad_()
        value = loss(scores, map_shape, border)
        value.backward()
        return value.item(), scores.grad.numpy()

    start = np.random.default_rng(seed).dirichlet(np.ones(num_experts))
    sum_is_one = {"type": "eq", "fun": lambda z: z.sum() - 1, "jac": np.ones_like}
    found = minimize(
        value_and_gradient, start, jac=True, method="SLSQP", bounds=[(0, 1)] * num_experts,
        constraints=sum_is_one, options={"ftol": 1e-10, "maxiter": 200},
    ).x  # fmt: skip
    z = np.clip(found, 0, None) / np.clip(found, 0, None).sum()
    gradient = value_and_gradient(z)[1]
    return torch.from_numpy(z), gradient @ z - gradient.min()


@pytest.mark.parametrize("row", page.table("What the loss rewards"), ids=lambda r: r["map, border"])
def test_table_of_what_the_loss_rewards(row):
    map_shape, border = page.shape(row["map, border"]), row["map, border"].split()[-1]
    num_experts = math.prod(map_shape)
    uniform = loss(torch.full((num_experts,), 1 / num_experts), map_shape, border)
    one_hot = one_hot_losses(map_shape, border)
    assert uniform.item() == pytest.approx(float(row["uniform"]), abs=ROUNDED)
    assert min(one_hot) == pytest.approx(float(row["best one-hot"]), abs=ROUNDED)
    assert max(one_hot) == pytest.approx(float(row["worst one-hot"]), abs=ROUNDED)
    for seed in (0, 1):
        z, missed = least_loss(map_shape, border, seed)
        assert 0 <= missed < 5e-5
        assert loss(z, map_shape, border).item() == pytest.approx(float(row["least"]), abs=ROUNDED)
        entropy = torch.special.entr(z).sum().item() / math.log(num_experts)
        if row["entropy there"] == "flat":
            assert entropy == pytest.approx(0.41, abs=0.005)
            assert min(one_hot) < loss(z, map_shape, border) + 1e-4
        else:
            assert entropy == pytest.approx(float(row["entropy there"]), abs=0.0051)


def coverage(map_shape, border, h, sigma, stride):
    """c_e, (N,): the sum over all windows of the weight that expert e has in them; and P."""
    weights, (rows, cols) = group_filter(h, sigma).tolist(), map_shape
    covered, num_groups = torch.zeros(rows, cols, dtype=torch.float64), 0
    last = (0, 0) if border == "torus" else (h - 1, h - 1)
    for i, j in itertools.product(
        range(0, rows - last[0], stride), range(0, cols - last[1], stride)
    ):
        num_groups += 1
        for u, v in itertools.product(range(h), range(h)):
            covered[(i + u) % rows, (j + v) % cols] += weights[u][v]
    return covered.flatten(), num_groups


@pytest.mark.parametrize("border", ["valid", "torus"])
@pytest.mark.parametrize(("h", "sigma", "stride"), [(3, 1.0, 1), (2, 0.7, 1), (3, None, 2)])
def test_loss_is_at_least_the_covered_scores(border, h, sigma, stride):
    settings = {"group_size": h, "sigma": sigma, "stride": stride}
    covered, num_groups = coverage((4, 8), border, h, sigma, stride)
    assert num_groups == Topography(4, 8, h, stride, border).num_groups
    logits = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sharpness = torch.logspace(-2, 1.5, 64, dtype=torch.float64)[:, None]
    for z in torch.softmax(sharpness * logits, dim=-1):
        assert loss(z, (4, 8), border, **settings) >= (covered * z).sum() / num_groups
    # Uniform scores are constant in every window: equality, up to eps.
    bound = covered.sum().item() / 32 / num_groups
    uniform = loss(torch.full((32,), 1 / 32), (4, 8), border, **settings).item()
    assert uniform == pytest.approx(bound, rel=1e-5)


def test_every_expert_is_covered_once_but_at_a_border():
    torch.testing.assert_close(coverage((8, 8), "torus", 3, 1.0, 1)[0], torch.ones(64).double())
    covered = coverage((8, 8), "valid", 3, 1.0, 1)[0].reshape(8, 8)
    inner = torch.zeros(8, 8, dtype=torch.bool)
    inner[2:6, 2:6] = True  # not in the outer h - 1 = 2 rows and columns
    torch.testing.assert_close(covered[inner], torch.ones(16).double())
    assert (covered[~inner] < 0.8).all()


def blocks(amounts, within=(0.25, 0.25, 0.25, 0.25)):
    """Scores on 4x4 whose four 2x2 blocks hold ``amounts``, shared out ``within`` each block."""
    z = torch.zeros(4, 4, dtype=torch.float64)
    for (i, j), amount in zip(itertools.product((0, 2), (0, 2)), amounts, strict=True):
        z[i : i + 2, j : j + 2] = amount * torch.tensor(within).double().reshape(2, 2)
    return z.flatten()


DISJOINT = {"group_size": 2, "stride": 2, "sigma": None}


def test_scores_that_sum_to_one_pay_nothing_for_active_groups():
    # A block that holds a, evenly: g = sqrt(mean of (a/4)^2) = a / 4. Mean of four: 1 / 16.
    for amounts in ((1, 0, 0, 0), (0.5, 0.5, 0, 0), (0.7, 0.2, 0.1, 0), (0.25,) * 4):
        even = loss(blocks(amounts), (4, 4), "valid", **DISJOINT).item()
        assert even == pytest.approx(1 / 16, abs=1e-4)  # an empty group has g = sqrt(eps) = 1e-4
        # Half on one, half on another of a block: g = a sqrt((1/4 + 1/4) / 4) = a sqrt(1/8).
        uneven = loss(blocks(amounts, (0.5, 0.5, 0, 0)), (4, 4), "valid", **DISJOINT).item()
        assert uneven == pytest.approx(math.sqrt(1 / 8) / 4, abs=1e-4)


def test_scores_of_a_sigmoid_pay_for_every_active_group():
    # n groups whose four scores are 0.8 each: g = 0.8 in these, so L = 0.8 n / 4.
    for n in (1, 2, 3, 4):
        z = blocks([3.2] * n + [0.0] * (4 - n))
        assert loss(z, (4, 4), "valid", **DISJOINT).item() == pytest.approx(0.2 * n, abs=1e-4)


def test_loss_of_one_expert_in_corner_edge_and_middle_of_4x8():
    prose = page.prose("Group-sparse loss")
    numbers = re.search(r"([\d.]+) in a corner, ([\d.]+) .*?, ([\d.]+) in", prose)
    corner, edge, middle = map(float, numbers.groups())
    # A window in which the expert has weights (a, b) of the taps gives sqrt(a b); P = 2 * 6 = 12.
    # Taps: e^-0.5 : 1 : e^-0.5, sum 1: outer 0.27407, centre 0.45186; roots 0.52351, 0.67221.
    outer, centre = (math.sqrt(t / (1 + 2 * math.exp(-0.5))) for t in (math.exp(-0.5), 1.0))
    across = 2 * outer + centre  # three windows side by side
    assert corner == pytest.approx(outer * outer / 12, abs=5e-4)
    assert edge == pytest.approx(outer * across / 12, abs=5e-4)
    assert middle == pytest.approx((outer + centre) * across / 12, abs=5e-4)
    computed = one_hot_losses((4, 8), "valid")
    for place, value in ((0, corner), (3, edge), (8 + 3, middle)):
        assert computed[place] == pytest.approx(value, abs=5e-4)


def test_groups_of_one_are_plain_moe():
    logits = torch.randn(256, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = {}
    for h in (1, 3):
        x = logits.clone().requires_grad_()
        value = group_norm(torch.softmax(x, dim=-1), group_size=h, backend="reference")
        (gradient,) = torch.autograd.grad(value, x)
        gradients[h] = gradient.norm().item()
        if h == 1:  # mean of 16 scores that sum to 1; eps adds at most sqrt(eps) = 1e-4
            assert 1 / 16 < value.item() < 1 / 16 + 1e-4
    prose = page.prose("Group-sparse loss")
    quoted = re.search(r"normal logits: (\S+), against (\S+) with h = 3", prose).groups()
    assert gradients[1] == pytest.approx(float(quoted[0]), rel=0.5)
    assert gradients[3] == pytest.approx(float(quoted[1]), rel=0.5)


def test_default_maps():
    quoted = re.findall(r"(\d+) -> (\d+)x(\d+)", page.prose("Group-sparse loss"))
    assert len(quoted) == 6
    for num_experts, rows, cols in quoted:
        assert default_map_shape(int(num_experts)) == (int(rows), int(cols))
    assert default_map_shape(13) == (1, 13)
