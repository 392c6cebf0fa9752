"""The losses MoGE is compared with, on cases whose value is known."""

import math

import pytest
import torch

from moge_bench import group_norm, route
from moge_bench.routing.regularizers import (
    entropy_loss,
    normalized_entropies,
    orthogonality_loss,
    simbal_loss,
)


def routing_of(scores, top_k=1, mask=None):
    return route(
        torch.tensor(scores).log(), top_k, group_size=None, mask=mask, nonfinite="propagate"
    )


def test_entropy_is_one_for_uniform_scores_and_zero_for_one_hot():
    entropies = normalized_entropies(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    # log 2 / log 4 = 1/2
    torch.testing.assert_close(entropies, torch.tensor([1.0, 0.0, 0.5]), atol=1e-6, rtol=0)
    assert normalized_entropies(torch.ones(3, 1)).tolist() == [0, 0, 0]


def test_entropy_loss_is_minus_the_mean_of_tokens_that_count():
    scores = [[0.25] * 4, [0.5, 0.5, 1e-30, 1e-30]]
    assert entropy_loss(routing_of(scores)) == pytest.approx(-0.75)
    masked = routing_of(scores, mask=torch.tensor([True, False]))
    assert entropy_loss(masked) == pytest.approx(-1.0)


def test_entropy_of_sigmoid_like_scores_is_that_of_their_shares():
    assert normalized_entropies(torch.tensor([[0.9, 0.9]])) == pytest.approx(1.0)


@pytest.mark.parametrize(("spread", "ratio"), [(0.05, 0.058), (1.0, 0.055)])
def test_entropy_loss_is_as_strong_as_the_group_loss_at_a_weight(spread, ratio):
    """The weight of moe-entropy in docs/method.md "Controls"."""
    logits = spread * torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)).double()
    uneven, even = (route(x, 1, group_size=None, backend="reference") for x in (logits, 0 * logits))
    group = [
        group_norm(r.scores, group_size=3, sigma=s, border="torus")
        for s in (1.0, 10.0) for r in (uneven, even)
    ]  # fmt: skip
    entropy = entropy_loss(uneven) - entropy_loss(even)
    for one, other in (group[:2], group[2:]):
        assert float((one - other) / entropy) == pytest.approx(ratio, rel=0.03)


def test_simbal_is_zero_for_orthonormal_rows_and_counts_what_is_off():
    assert simbal_loss(torch.eye(3, 5)) == 0
    # Two equal unit rows: R R^T - I = [[0, 1], [1, 0]], mean of absolute entries 1/2.
    assert simbal_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(0.5)
    # A row of length 2: [[3]].
    assert simbal_loss(torch.tensor([[2.0]])) == pytest.approx(3.0)


def test_orthogonal_outputs_leave_the_variance_alone():
    routing = routing_of([[0.7, 0.3], [0.3, 0.7]], top_k=2)
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]] * 2)
    # Both scores deviate by 0.2 from their mean: variance 0.04.
    assert orthogonality_loss(routing, outputs) == pytest.approx(-0.04, abs=1e-6)
    assert orthogonality_loss(routing, None) == pytest.approx(-0.04, abs=1e-6)


def test_parallel_outputs_cost_their_squared_lengths():
    routing = routing_of([[0.5, 0.5]], top_k=2)
    # (1, 0) and (2, 0): |<a, b>|^2 / |b|^2 = 4 / 4 = 1 and 4 / 1 = 4; mean 2.5, variance 0.
    loss = orthogonality_loss(routing, torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]))
    assert loss == pytest.approx(2.5, rel=1e-5)


def test_padding_enters_no_regularizer():
    mask = torch.tensor([True, True, False])
    scores = [[0.7, 0.3], [0.3, 0.7], [0.999, 0.001]]
    outputs = torch.randn(3, 2, 4)
    kept = orthogonality_loss(routing_of(scores[:2], top_k=2), outputs[:2])
    masked = orthogonality_loss(routing_of(scores, top_k=2, mask=mask), outputs)
    torch.testing.assert_close(masked, kept)


@pytest.mark.parametrize("loss", [entropy_loss, lambda r: orthogonality_loss(r, None)])
def test_an_empty_batch_costs_nothing(loss):
    assert float(loss(route(torch.zeros(0, 4), 1, group_size=None))) == 0


def test_gradients_reach_logits_and_gate():
    logits = torch.randn(6, 4, requires_grad=True)
    routing = route(logits, 2, group_size=None)
    outputs = torch.randn(6, 2, 3, requires_grad=True)
    (entropy_loss(routing) + orthogonality_loss(routing, outputs)).backward()
    assert logits.grad.abs().sum() > 0
    assert outputs.grad.abs().sum() > 0
    gate = torch.randn(4, 8, requires_grad=True)
    simbal_loss(gate).backward()
    assert math.isfinite(float(gate.grad.norm())) and gate.grad.abs().sum() > 0
