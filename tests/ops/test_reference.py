"""The reference against hand arithmetic, properties, and float64 gradcheck."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, gaussian_taps

TAPS3 = gaussian_taps(3, 1.0)


def one_hot_loss(row, col, topo=None):
    topo = topo or Topography(4, 8, 3)
    z = torch.zeros(1, topo.rows * topo.cols, dtype=torch.float64)
    z[0, row * topo.cols + col] = 1.0
    return reference.group_norm(z, TAPS3, topo).item()


def test_one_hot_losses_of_method_md():
    # 4x8, h = 3, sigma = 1: taps (a, b, a) = (0.27407, 0.45186, 0.27407); P = 2 * 6 = 12.
    # A one-hot z gives sqrt(G) = sqrt(g[u] g[v]) in every group that holds the expert, and
    # sqrt(eps) = 1e-4 in the others. With p = sqrt(a) = 0.52352, q = sqrt(b) = 0.67221:
    # corner (0, 0): the group at (0, 0) alone, with tap g[0] g[0]: p p = 0.27407;
    #   (0.27407 + 11e-4) / 12 = 0.02293
    # mid long edge (0, 3): groups of row 0 at columns 1, 2, 3 with taps g[0] g[2], g[0] g[1],
    #   g[0] g[0]: p (p + q + p) = 0.52352 * 1.71925 = 0.90006; (0.90006 + 9e-4) / 12 = 0.07508
    # interior (1, 3): both rows of groups, taps g[1] and g[0]: (q + p) (p + q + p)
    #   = 1.19573 * 1.71925 = 2.05576; (2.05576 + 6e-4) / 12 = 0.17136
    assert one_hot_loss(0, 0) == pytest.approx(0.02293, abs=1e-5)
    assert one_hot_loss(0, 3) == pytest.approx(0.07508, abs=1e-5)
    assert one_hot_loss(1, 3) == pytest.approx(0.17136, abs=1e-5)


def test_every_expert_of_a_torus_has_the_same_one_hot_loss():
    topo = Topography(4, 8, 3, border="torus")
    losses = [one_hot_loss(r, c, topo) for r in range(4) for c in range(8)]
    assert max(losses) == pytest.approx(min(losses), rel=1e-12)


def test_two_by_two_map_by_hand():
    # z = (0.1, 0.2, 0.3, 0.4), h = 2, box filter (1/4 each), valid: one group;
    # energy = (0.01 + 0.04 + 0.09 + 0.16) / 4 = 0.075; g = sqrt(0.075 + 1e-8) = 0.27386
    z = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    loss = reference.group_norm(z, gaussian_taps(2, None), Topography(2, 2, 2))
    assert loss.item() == pytest.approx(math.sqrt(0.075 + 1e-8), rel=1e-12)
    # dL/dz = (1/4) z / g
    loss.backward()
    assert torch.allclose(z.grad, z.detach() / 4 / math.sqrt(0.075 + 1e-8))


def test_routing_of_one_token_by_hand():
    # softmax(ln 1, ln 2, ln 4, ln 1) = (1, 2, 4, 1) / 8; top 2 = experts 2, 1;
    # renormalised 4/6, 2/6.
    x = torch.tensor([[1.0, 2.0, 4.0, 1.0]], dtype=torch.float64).log()
    topo = Topography(2, 2, 1)
    weights, experts, importance, loss, load, first_load = reference.route(
        x, None, gaussian_taps(1, 1.0), topo, Choice(4, 2)
    )
    assert experts.tolist() == [[2, 1]] and load.tolist() == [0, 1, 1, 0]
    assert first_load.tolist() == [0, 0, 1, 0]
    assert torch.allclose(weights, torch.tensor([[4 / 6, 2 / 6]], dtype=torch.float64))
    assert torch.allclose(importance, torch.tensor([1, 2, 4, 1]).double() / 8)
    assert loss.item() == pytest.approx(1 / 4, abs=1e-6)  # h = 1: mean of z = 1 / N
    weights, *_ = reference.route(x, None, None, None, Choice(4, 2, False))
    assert torch.allclose(weights, torch.tensor([[4 / 8, 2 / 8]], dtype=torch.float64))


def test_noise_moves_the_selection_and_not_the_weights():
    x = torch.tensor([[1.0, 2.0, 4.0, 1.0]], dtype=torch.float64).log()
    noise = torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    weights, experts, importance, *_ = reference.route(x, noise, None, None, Choice(4, 1, False))
    assert experts.tolist() == [[0]]
    assert weights.item() == pytest.approx(1 / 8)
    assert torch.allclose(importance, torch.tensor([1, 2, 4, 1]).double() / 8)


def test_the_loss_takes_one_softmax():
    # A published failure: an auxiliary loss that applies softmax to scores a second time.
    x = torch.randn(6, 16, dtype=torch.float64)
    e = x.exp()
    z = (e / e.sum(1, keepdim=True)).reshape(6, 4, 4)
    weight = torch.outer(TAPS3, TAPS3)
    groups = [
        (z[:, i : i + 3, j : j + 3] ** 2 * weight).sum((1, 2)) for i in range(2) for j in (0, 1)
    ]
    expected = torch.stack(groups).add(1e-8).sqrt().mean()
    loss = reference.route(x, None, TAPS3, Topography(4, 4, 3), Choice(16, 2))[3]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@given(
    rows=st.integers(1, 5), cols=st.integers(1, 5), h=st.integers(1, 7), stride=st.integers(1, 4),
    border=st.sampled_from(["valid", "torus"]), seed=st.integers(0, 2**16),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_group_norms_match_a_loop_over_windows(rows, cols, h, stride, border, seed):
    if border == "valid" and h > min(rows, cols):
        return
    topo = Topography(rows, cols, h, stride, border)
    z = torch.rand(2, rows, cols, generator=torch.Generator().manual_seed(seed)).double()
    taps = gaussian_taps(h, 0.8)
    norms = reference.group_norms(z.reshape(2, -1), taps, topo)
    starts = [(i, j) for i in range(0, rows, stride) for j in range(0, cols, stride)]
    if border == "valid":
        starts = [(i, j) for i, j in starts if i + h <= rows and j + h <= cols]
    assert norms.shape == (2, len(starts)) and topo.num_groups == len(starts)
    for p, (i, j) in enumerate(starts):
        for t in range(2):
            energy = sum(
                taps[u].item() * taps[v].item() * z[t, (i + u) % rows, (j + v) % cols].item() ** 2
                for u in range(h)
                for v in range(h)
            )
            assert norms[t, p].item() == pytest.approx(math.sqrt(energy + 1e-8), rel=1e-12)


@pytest.mark.parametrize("border", ["valid", "torus"])
@pytest.mark.parametrize("renormalize", [True, False])
def test_gradcheck(border, renormalize):
    topo = Topography(3, 4, 3, border=border)
    choice = Choice(12, 2, renormalize)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)

    def differentiable(x):
        weights, _, importance, loss, *_ = reference.route(x, None, TAPS3, topo, choice)
        return weights, importance, loss

    assert torch.autograd.gradcheck(differentiable, (x,))
