"""What CUDA kernels do not take, put together from them (docs/method.md "Wider routing").

``routes_whole`` and ``norms_whole`` say what is one call of a kernel; on the CPU everything is. The
rest is done here with static shapes, without a wait for the device and without a graph break. The
scores are materialised.
Legend: T tokens, N experts, k chosen, P groups.
"""

from __future__ import annotations

import math

import torch

from moge_bench.ops import extension, reference, validation
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import EPS, REDUCTIONS, Topography

Outputs = reference.Outputs
_SUM = REDUCTIONS.index("official_language")


def count_experts(
    experts: torch.Tensor, num_experts: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return how often each expert stands in ``experts``, (T, ...) int64, as (N,) int64.

    Tokens outside ``mask`` are left out. Not bincount, whose shape depends on its input, as a
    compiler sees it, and which waits for a GPU.
    """
    if mask is None:
        ones = torch.ones_like(experts)
    else:
        ones = mask.to(torch.int64).reshape(-1, *[1] * (experts.dim() - 1)).expand_as(experts)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=experts.device)
    return counts.scatter_add(0, experts.reshape(-1), ones.reshape(-1))


def routable_rows(
    matrix: torch.Tensor, mask: torch.Tensor | None, strict: bool = True
) -> torch.Tensor:
    """Return ``matrix``, (T, N), with 0 in rows that do not count and that could not be routed.

    Those are the rows with NaN or infinity or, unless ``strict``, those whose softmax is NaN.
    Chosen by ``where``: a product with 0 would keep the NaN, in the gradient too.
    """
    if mask is None:
        return matrix
    checked = matrix if strict else matrix.amax(dim=-1, keepdim=True)
    return torch.where((mask[:, None] | checked.isfinite().all(-1, keepdim=True)), matrix, 0)


def counted_rows(matrix: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return ``matrix``, (T, N), with 0 in the rows that do not count, whatever they hold."""
    return torch.where(mask[:, None], matrix, 0)


def counted_group_loss(total: torch.Tensor, mask: torch.Tensor, topo: Topography) -> torch.Tensor:
    """Return L_group of the tokens that count from ``total``, (): that of all of them.

    ``total`` is the "official_language" loss, sum_{t,p} g / P, of scores that are 0 in the rows
    that do not count. There every norm is sqrt(0 + eps), so such a row has added sqrt(eps).
    """
    num_counted = mask.sum()
    padding = (mask.shape[0] - num_counted) * math.sqrt(EPS)
    loss = total.to(torch.float64) - padding
    if topo.reduction == "token_mean":
        loss = loss / num_counted.clamp_min(1)
    elif topo.reduction == "official_image":
        loss = loss / topo.group_size**2
    return torch.where(num_counted > 0, loss, 0).to(total.dtype)


def routes_whole(
    logits: torch.Tensor,
    choice: Choice,
    topo: Topography | None,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> bool:
    """Return whether moge::route takes all of it in one pass."""
    return not logits.is_cuda or (
        bias is None
        and mask is None
        and choice.score_function == "softmax"
        and not choice.limited
        and choice.scale == 1
        and (topo is None or not topo.unit_energy)
    )


def norms_whole(scores: torch.Tensor, topo: Topography, mask: torch.Tensor | None) -> bool:
    """Return whether moge::group_norm takes all of it in one pass."""
    return not scores.is_cuda or (mask is None and not topo.unit_energy)


def route(
    logits: torch.Tensor,
    noise: torch.Tensor | None,
    taps: torch.Tensor | None,
    topo: Topography | None,
    choice: Choice,
    strict: bool,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[Outputs, torch.Tensor]:
    """Return the outputs of ``reference.route`` by the compiled ops, and the scores (T, N).

    The rows of ``logits`` and ``noise`` are routable (``routable_rows``).
    """
    scores = reference.scores(logits, choice.score_function)
    if routes_whole(logits, choice, None, bias, None):
        op = extension.find_op("route")
        outputs = op(logits, noise, None, (), choice.as_ints, strict)
        weights, experts, importance, group_loss, load, first_load = outputs[:6]
    else:
        if strict:
            validation.check_finite("logits", logits, unbroken=True)
            if noise is not None:
                validation.check_finite("noise", noise, unbroken=True)
        keys = reference.selection_keys(logits, noise, choice, bias)
        if choice.limited:
            experts = reference.select_limited(keys, choice, _select)
        else:
            experts = _select(keys, choice.top_k)
        weights = reference.gate_weights(logits, scores, experts, choice)
        importance = _importance(scores, choice, None)
        load = count_experts(experts, choice.num_experts)
        first_load = count_experts(experts[:, :1], choice.num_experts)
        group_loss = scores.new_zeros(())
    if mask is not None:
        importance = _importance(scores, choice, mask)
        load = count_experts(experts, choice.num_experts, mask)
        first_load = count_experts(experts[:, :1], choice.num_experts, mask)
    if taps is not None and topo is not None:
        scored = scores if mask is None else counted_rows(scores, mask)
        group_loss = group_norm(scored, taps, topo, False, mask)
    return (weights, experts, importance, group_loss, load, first_load), scores


def _importance(scores: torch.Tensor, choice: Choice, mask: torch.Tensor | None) -> torch.Tensor:
    shares = reference.normalized(scores, choice.score_function)
    counted = shares if mask is None else counted_rows(shares, mask)
    return counted.sum(dim=0, dtype=torch.float64).to(scores.dtype)


def _select(keys: torch.Tensor, top_k: int) -> torch.Tensor:
    """``reference.select_experts`` by moge::route, which ranks what it is given as logits."""
    choice = (top_k, 0, 0, 1, 1)  # as in csrc/plan.h
    experts: torch.Tensor = extension.find_op("route")(keys, None, None, (), choice, False)[1]
    return experts


def group_norm(
    scores: torch.Tensor,
    taps: torch.Tensor,
    topo: Topography,
    strict: bool,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return L_group, (), by the compiled op; ``scores`` are 0 in the rows that do not count."""
    groups = (*topo.as_ints[:5], 0)
    if strict:
        validation.check_finite("scores", scores, unbroken=True)
    if topo.unit_energy:
        scores = reference.unit_rows(scores.to(reference.accumulation_dtype(scores.dtype)))
    op = extension.find_op("group_norm")
    if mask is None:
        loss: torch.Tensor = op(scores, taps, groups, False)
        return loss
    total = op(scores, taps, (*groups[:4], _SUM, 0), False)
    return counted_group_loss(total, mask, topo)
