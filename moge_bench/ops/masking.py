"""Routing with a mask of tokens or with a selection bias (docs/method.md "Wider routing").

The compiled kernels take neither: here they are put together from the ops, with static shapes,
without a wait for the device and without a graph break. The scores are materialised. Legend: T
tokens, N experts, k chosen, P groups.
"""

from __future__ import annotations

import math

import torch

from moge_bench.ops import extension, reference, validation
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


def route(
    logits: torch.Tensor,
    noise: torch.Tensor | None,
    taps: torch.Tensor | None,
    top_k: int,
    topo: Topography | None,
    renormalize: bool,
    strict: bool,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    backend: str,
) -> tuple[Outputs, torch.Tensor]:
    """Return the outputs of ``reference.route`` by the compiled ops, and the scores (T, N).

    The rows of ``logits`` and ``noise`` are routable (``routable_rows``); ``backend`` is the
    chosen one, "extension" or "reference".
    """
    if backend == "reference":
        if strict:
            validation.check_finite("logits", logits)
            if noise is not None:
                validation.check_finite("noise", noise)
        outputs = reference.route(logits, noise, taps, top_k, topo, renormalize, bias, mask)
        return outputs, reference.scores(logits)
    op = extension.find_op("route")
    scores = reference.scores(logits)
    choice = (top_k, int(renormalize))
    groups = topo.as_ints if topo is not None and mask is None else ()
    weights, experts, importance, group_loss, load, first_load = op(
        logits, noise, taps if mask is None else None, groups, choice, strict
    )[:6]
    if bias is not None:
        # The op compares logits + noise: given the keys as logits, it ranks those.
        keys = reference.selection_keys(logits, noise, bias)
        _, experts, _, _, load, first_load, _ = op(keys, None, None, (), (top_k, 0), False)
        weights = reference.gate_weights(logits, scores, experts, renormalize)
    if mask is not None:
        counted = counted_rows(scores, mask)
        importance = counted.sum(dim=0, dtype=torch.float64).to(scores.dtype)
        load = count_experts(experts, logits.shape[1], mask)
        first_load = count_experts(experts[:, :1], logits.shape[1], mask)
        if taps is not None and topo is not None:
            group_loss = group_norm(counted, taps, topo, strict, mask)
    return (weights, experts, importance, group_loss, load, first_load), scores


def group_norm(
    scores: torch.Tensor,
    taps: torch.Tensor,
    topo: Topography,
    strict: bool,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return L_group, (), by the compiled op; ``scores`` are 0 in the rows that do not count."""
    total = extension.find_op("group_norm")(scores, taps, (*topo.as_ints[:-1], _SUM), strict)
    return counted_group_loss(total, mask, topo)
