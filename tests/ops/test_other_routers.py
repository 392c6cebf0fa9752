"""Routers of other libraries against route (docs/method.md "Wider routing").

TransformerEngine's fused router (transformer_engine/pytorch/router.py, its docstrings): softmax
before or after top-k, sigmoid and sqrt-softplus with a bias for the selection, group-limited top-k,
a scaling factor, and the scores of its auxiliary loss. Megatron's and DeepSeek-V3's are the same.
"""

import itertools

import pytest
import torch
import torch.nn.functional as functional

from moge_bench import route

DOUBLE = torch.float64
EPS = 1e-20


def described_scores(logits, score_function):
    if score_function == "softmax":
        return torch.softmax(logits, dim=-1)
    return (
        torch.sigmoid(logits) if score_function == "sigmoid" else functional.softplus(logits).sqrt()
    )


def described_topk(keys, top_k, num_groups, group_top_k):
    """The top-k of a row of keys, limited to the best groups, by torch.topk and a mask of them."""
    num_tokens, num_experts = keys.shape
    if num_groups == 1:
        return torch.topk(keys, top_k, dim=-1).indices
    grouped = keys.view(num_tokens, num_groups, -1)
    group_scores = grouped.topk(top_k // group_top_k, dim=-1).values.sum(dim=-1)
    best = group_scores.topk(group_top_k, dim=-1).indices
    open_groups = torch.zeros_like(group_scores).scatter(1, best, 1).bool()
    open_experts = open_groups[:, :, None].expand_as(grouped).reshape(num_tokens, num_experts)
    return keys.masked_fill(~open_experts, -torch.inf).topk(top_k, dim=-1).indices


def described(logits, top_k, *, score_function, pre_softmax, bias, groups, scale):
    """Return (probabilities (T, N), 0 where an expert is not chosen; chosen (T, k))."""
    num_groups, group_top_k = groups
    if score_function == "softmax":
        keys = described_scores(logits, "softmax") if pre_softmax or num_groups > 1 else logits
        chosen = described_topk(keys, top_k, num_groups, group_top_k)
        if pre_softmax:
            kept = described_scores(logits, "softmax").gather(1, chosen)
        else:
            kept = torch.softmax(logits.gather(1, chosen), dim=-1)
    else:
        scores = described_scores(logits, score_function)
        keys = scores if bias is None else scores + bias
        chosen = described_topk(keys, top_k, num_groups, group_top_k)
        kept = scores.gather(1, chosen)
        if top_k > 1:
            kept = kept / (kept.sum(dim=-1, keepdim=True) + EPS)
    return torch.zeros_like(logits).scatter(1, chosen, kept * scale), chosen


CASES = [
    (num_experts, top_k, function, pre_softmax, biased, groups, scale)
    for (num_experts, top_k), (function, pre_softmax, biased), groups, scale in itertools.product(
        [(32, 1), (64, 4), (128, 8), (256, 8), (1024, 32)],
        [("softmax", True, False), ("softmax", False, False), ("sigmoid", True, False),
         ("sigmoid", True, True), ("sqrtsoftplus", True, False), ("sqrtsoftplus", True, True)],
        [(1, 1), (8, 4)],
        [1.0, 2.5],
    )
    if top_k % groups[1] == 0
]  # fmt: skip


@pytest.mark.parametrize(
    ("num_experts", "top_k", "function", "pre_softmax", "biased", "groups", "scale"), CASES
)
def test_transformer_engine(
    backend, num_experts, top_k, function, pre_softmax, biased, groups, scale
):
    logits = torch.randn(7, num_experts, dtype=DOUBLE, requires_grad=True)
    bias = torch.randn(num_experts, dtype=DOUBLE) / 10 if biased else None
    probabilities, chosen = described(
        logits, top_k, score_function=function, pre_softmax=pre_softmax, bias=bias,
        groups=groups, scale=scale,
    )  # fmt: skip
    # Theirs divides sigmoid scores by their sum where there is more than one, and softmax never.
    renormalize = not pre_softmax if function == "softmax" else top_k > 1
    ours = route(
        logits, top_k, group_size=None, renormalize=renormalize, score_function=function,
        bias=bias, num_groups=groups[0], top_groups=groups[1], scale=scale, backend=backend,
    )  # fmt: skip
    assert torch.equal(ours.experts, chosen)
    dense = torch.zeros_like(logits).scatter(1, ours.experts, ours.weights)
    torch.testing.assert_close(dense, probabilities, rtol=1e-11, atol=1e-14)
    cotangent = torch.randn_like(dense)
    gradients = [
        torch.autograd.grad((p * cotangent).sum(), logits)[0] for p in (dense, probabilities)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_scores_of_the_auxiliary_loss(backend, function):
    """E / (k T^2) sum_e (tokens of e) (sum of the scores of e, each row divided by its sum)."""
    logits = torch.randn(50, 64, dtype=DOUBLE)
    scores = described_scores(logits, function)
    shares = scores / (scores.sum(dim=-1, keepdim=True) + EPS)
    tokens = torch.zeros_like(logits).scatter(1, scores.topk(4).indices, 1).sum(dim=0)
    expected = 64 / (4 * 50**2) * (tokens * shares.sum(dim=0)).sum()
    ours = route(logits, 4, score_function=function, group_size=None, backend=backend)
    assert 64 / (4 * 50**2) * (ours.load * ours.importance).sum() == pytest.approx(expected)
