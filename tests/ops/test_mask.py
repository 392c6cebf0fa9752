"""Tokens that count: route and group_norm with a mask (docs/method.md "Wider routing")."""

import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from moge_bench import group_norm, route
from moge_bench.ops import extension
from moge_bench.ops import group_norm as group_norm_module
from moge_bench.ops.route import Routing

REDUCTIONS = ["token_mean", "official_image", "official_language"]


def padded_logits(dtype=torch.float64, pad=torch.nan):
    logits, mask = torch.randn(30, 16).to(dtype), torch.arange(30) % 3 > 0
    logits[~mask] = pad
    return logits.requires_grad_(), mask


def objective(routing, weights):
    return routing.group_loss + routing.importance.square().mean() + weights.square().sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pad", [0.0, torch.nan, torch.inf])
def test_padding_enters_nothing(backend, reduction, pad):
    logits, mask = padded_logits(pad=pad)
    padded = route(logits, 2, mask=mask, reduction=reduction, backend=backend)
    alone = route(logits[mask], 2, reduction=reduction, backend=backend)
    assert torch.equal(padded.experts[mask], alone.experts)
    assert torch.equal(padded.weights[mask], alone.weights)
    assert torch.equal(padded.load, alone.load)
    assert torch.equal(padded.first_load, alone.first_load)
    torch.testing.assert_close(padded.importance, alone.importance)
    torch.testing.assert_close(padded.group_loss, alone.group_loss)
    got = torch.autograd.grad(objective(padded, padded.weights[mask]), logits)[0]
    wanted = torch.autograd.grad(objective(alone, alone.weights), logits)[0]
    torch.testing.assert_close(got, wanted)  # 0 in the padding, whatever it holds


@pytest.mark.parametrize("num_tokens", [1, 3, 7, 9, 17])
@pytest.mark.parametrize("pad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{}, {"score_function": "sigmoid"}, {"bias": torch.zeros(16)}])
@pytest.mark.parametrize("nonfinite", ["error", "propagate"])
def test_padding_in_the_last_row_enters_nothing(backend, num_tokens, pad, options, nonfinite):
    """A kernel of 4, 8 or 16 rows a tile fills its last one up with the last row."""
    logits, mask = torch.randn(num_tokens, 16), torch.ones(num_tokens, dtype=torch.bool)
    logits[-1], mask[-1] = pad, False
    options = {"nonfinite": nonfinite, "backend": backend, **options}
    padded = route(logits, 2, mask=mask, **options)
    alone = route(logits[:-1], 2, **options)
    torch.testing.assert_close(padded.importance, alone.importance)
    torch.testing.assert_close(padded.group_loss, alone.group_loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_in_other_dtypes(backend, dtype):
    logits, mask = padded_logits(dtype)
    padded = route(logits, 2, mask=mask, backend=backend)
    alone = route(logits[mask], 2, backend=backend)
    # Summed in float32 from terms of which padding is a thousandth: a few roundings of 6e-8.
    torch.testing.assert_close(padded.group_loss, alone.group_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(padded.importance, alone.importance, rtol=1e-6, atol=0)


def test_padding_that_is_finite_is_routed_like_any_other_token(backend):
    logits, mask = padded_logits(pad=0.0)
    logits = torch.randn_like(logits)
    padded, all_count = route(logits, 2, mask=mask, backend=backend), route(logits, 2)
    assert torch.equal(padded.experts, all_count.experts)
    torch.testing.assert_close(padded.weights, all_count.weights)


def test_a_masked_expert_stays_masked_in_padding(backend):
    logits = torch.zeros(2, 4)
    logits[:, 0] = -torch.inf
    routing = route(
        logits, 3, mask=torch.tensor([True, False]), nonfinite="propagate", backend=backend
    )
    assert routing.experts.tolist() == [[1, 2, 3]] * 2


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_token_that_counts(backend, reduction):
    logits, mask = padded_logits()
    routing = route(logits, 2, mask=torch.zeros_like(mask), reduction=reduction, backend=backend)
    assert float(routing.group_loss.detach()) == 0.0
    for sums in (routing.importance, routing.load, routing.first_load):
        assert torch.count_nonzero(sums) == 0
    (gradient,) = torch.autograd.grad(objective(routing, routing.weights[:0]), logits)
    assert torch.count_nonzero(gradient) == 0


def test_a_token_that_counts_must_be_finite(backend):
    logits, mask = padded_logits()
    logits.data[7] = torch.nan  # 7 mod 3 = 1: it counts
    with pytest.raises(ValueError, match="logits must be finite, got NaN or inf in row 7"):
        route(logits, 2, mask=mask, backend=backend)
    scores = torch.softmax(logits.detach(), dim=-1)
    with pytest.raises(ValueError, match="scores must be finite, got NaN or inf in row 7"):
        group_norm(scores, mask=mask, backend=backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_group_norm_leaves_padding_out(backend, reduction):
    logits, mask = padded_logits()
    scores = torch.softmax(logits.detach(), dim=-1).requires_grad_()
    losses = [
        group_norm(scores, mask=mask, reduction=reduction, backend=backend),
        group_norm(scores[mask], reduction=reduction, backend=backend),
    ]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


def test_all_tokens_count_is_no_mask(backend):
    logits = torch.randn(30, 16, dtype=torch.float64)
    full = route(logits, 2, mask=torch.ones(30, dtype=torch.bool), backend=backend)
    torch.testing.assert_close(full.group_loss, route(logits, 2, backend=backend).group_loss)


def test_masked_call_compiles_into_one_graph_for_every_mask(backend):
    def loss(logits, mask):
        routing = route(logits, 2, mask=mask, nonfinite="propagate", backend=backend)
        return routing.group_loss + group_norm(
            routing.scores, mask=mask, nonfinite="propagate", backend=backend
        )

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    logits, mask = padded_logits()
    for m in (mask, ~mask & False):
        torch.testing.assert_close(compiled(logits, m), loss(logits, m))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True] * 3, TypeError, "mask must be a torch.Tensor or None, got list"),
        (torch.ones(3), TypeError, "mask must be bool.*got torch.float32"),
        (torch.ones(3, 1, dtype=torch.bool), ValueError, r"shape \(3,\).*got \(3, 1\)"),
        (torch.ones(4, dtype=torch.bool), ValueError, r"shape \(3,\) on cpu; got \(4,\) on cpu"),
    ],
)
def test_mask_errors(mask, error, message):
    with pytest.raises(error, match=message):
        route(torch.randn(3, 16), 2, mask=mask)
    with pytest.raises(error, match=message):
        group_norm(torch.rand(3, 16), mask=mask)


def test_first_load_counts_first_choices(backend):
    logits = torch.tensor([[3.0, 2, 1], [3, 1, 2], [0, 0, 1]])
    routing = route(logits, 2, group_size=None, backend=backend)
    assert routing.first_load.tolist() == [2, 0, 1]
    assert routing.load.tolist() == [3, 1, 2]  # the tie of the third token goes to expert 0
    assert routing.first_load.dtype == torch.int64


def test_routing_is_a_pytree_and_can_be_copied():
    mask = torch.tensor([True, True, False])
    routing = route(torch.randn(3, 16), 2, mask=mask)
    leaves, spec = pytree.tree_flatten(routing)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    copies = [
        pytree.tree_unflatten(leaves, spec), copy.deepcopy(routing),
        pickle.loads(pickle.dumps(routing)),
    ]  # fmt: skip
    for copied in copies:
        assert isinstance(copied, Routing)
        assert copied.backend == routing.backend
        for name in ("weights", "experts", "load", "first_load", "scores", "mask"):
            assert torch.equal(getattr(copied, name), getattr(routing, name)), name


def test_default_group_fits_the_map_of_eight_experts(backend):
    scores = torch.softmax(torch.randn(5, 8), dim=-1)
    expected = group_norm(scores, group_size=2, backend=backend)
    assert torch.equal(group_norm(scores, backend=backend), expected)
    assert torch.equal(
        route(scores.log(), 2, backend=backend).group_loss,
        route(scores.log(), 2, group_size=2, backend=backend).group_loss,
    )
    with pytest.raises(ValueError, match="group_size=3 does not fit the 2x4 map"):
        group_norm(scores, group_size=3, backend=backend)


@pytest.fixture
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(group_norm_module, "_calls", iter(range(99)))
    extension.warn_once.cache_clear()


@pytest.mark.usefixtures("fresh_warnings")
def test_raw_logits_are_warned_of_once(recwarn):
    for _ in range(3):
        group_norm(torch.randn(40, 16))
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == 1
    assert "group_norm got negative scores, so plainly raw logits" in messages[0]


@pytest.mark.usefixtures("fresh_warnings")
def test_scores_of_any_sum_are_not_warned_of(recwarn):
    logits, mask = torch.randn(40, 16), torch.arange(40) > 3
    group_norm(torch.softmax(logits, dim=-1))
    group_norm(torch.sigmoid(logits))
    group_norm(
        torch.where(mask[:, None], logits.abs(), -1.0), mask=mask
    )  # padding is not looked at
    assert len(recwarn) == 0
