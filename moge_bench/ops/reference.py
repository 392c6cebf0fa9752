"""The specification in plain PyTorch: what the extension, compiled or not, is tested against.

Line for line with docs/method.md "Routing" and "Group-sparse loss", differentiable by autograd and
exact in float64. Slow on purpose: it materialises everything.

Legend: T tokens, N experts, k chosen, (r, c) map, h group side, P groups. Suffixes name axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import EPS, Topography

# Added to the sum of sigmoid or sqrt-softplus scores before it divides (as in Megatron).
SUM_EPS = 1e-20
_SMALL = -40.0  # below it log(1 + exp x) is exp x, to float64

# weights, experts, importance, group_loss, load, first_load
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def group_norms(scores_TN: torch.Tensor, taps: torch.Tensor, topo: Topography) -> torch.Tensor:
    """Return g of docs/method.md, shape (T, P).

    g[t, p] = sqrt( sum_{u,v} G[u,v] z[t, i*s+u, j*s+v]^2 + eps ), with G[u,v] = taps[u] taps[v];
    with ``topo.unit_energy`` the sum is divided by sum_e z[t, e]^2.
    """
    if topo.unit_energy:
        scores_TN = unit_rows(scores_TN)
    num_tokens, h, s = scores_TN.shape[0], topo.group_size, topo.stride
    squared_TRC = scores_TN.reshape(num_tokens, topo.rows, topo.cols) ** 2
    weight_HH = torch.outer(taps, taps).to(scores_TN.dtype)
    rows_i = torch.arange(topo.group_rows, device=scores_TN.device) * s
    cols_j = torch.arange(topo.group_cols, device=scores_TN.device) * s
    energy = scores_TN.new_zeros((num_tokens, topo.group_rows, topo.group_cols))
    for u in range(h):
        for v in range(h):
            # With border "valid" every index is on the map and the modulo changes nothing.
            rows, cols = (rows_i + u) % topo.rows, (cols_j + v) % topo.cols
            energy = energy + weight_HH[u, v] * squared_TRC[:, rows][:, :, cols]
    return torch.sqrt(energy + EPS).reshape(num_tokens, topo.num_groups)


def unit_rows(scores_TN: torch.Tensor) -> torch.Tensor:
    """Return z / ||z||_2 of every row, (T, N); a row of zeros stays one, with a gradient of 0.

    So does a row of subnormal scores, which have no reciprocal. Rows are divided by their largest
    entry first, which changes nothing else: squares of small scores, those of sigmoid say, would
    underflow.
    """
    tiny = torch.finfo(scores_TN.dtype).tiny
    largest_T1 = scores_TN.detach().abs().amax(dim=-1, keepdim=True)
    scaled_TN = scores_TN * (~(largest_T1 < tiny)) / largest_T1.clamp_min(tiny)
    energy_T1 = scaled_TN.square().sum(dim=-1, keepdim=True)
    return scaled_TN * torch.where(energy_T1 == 0, 1, energy_T1).rsqrt()


def group_norm(
    scores_TN: torch.Tensor,
    taps: torch.Tensor,
    topo: Topography,
    mask_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return L_group, shape (): the group norms summed and scaled by ``topo.reduction``.

    Tokens outside ``mask_T`` are left out of sum and mean, whatever their scores hold.
    """
    scores_TN = scores_TN.to(accumulation_dtype(scores_TN.dtype))
    if mask_T is None:
        return group_norms(scores_TN, taps, topo).sum() * topo.scale(scores_TN.shape[0])
    norms_TP = group_norms(torch.where(mask_T[:, None], scores_TN, 0), taps, topo)
    total = torch.where(mask_T[:, None], norms_TP, 0).sum()
    if topo.reduction == "token_mean":
        return total / (mask_T.sum().clamp_min(1) * topo.num_groups)
    return total * topo.scale(scores_TN.shape[0])


def select_experts(selection_TN: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return the indices of the ``top_k`` largest entries of each row, (T, k) int64, descending.

    Of equal entries the lower index comes first; NaN ranks as -inf. A stable sort returns a
    permutation, so no expert is ever returned twice, whatever the row holds.
    """
    selection_TN = torch.where(selection_TN.isnan(), -torch.inf, selection_TN)
    return selection_TN.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]


def select_limited(
    keys_TN: torch.Tensor,
    choice: Choice,
    select: Callable[[torch.Tensor, int], torch.Tensor] = select_experts,
) -> torch.Tensor:
    """Return the k best experts of the best ``top_groups`` ranges, (T, k) int64, descending.

    A range ranks by the sum of its k / top_groups best keys. Of equal ranges and of equal keys the
    lower index comes first; NaN ranks as -inf. ``select`` is ``select_experts`` or its like.
    """
    num_tokens, width = keys_TN.shape[0], choice.group_width
    keys_TGW = keys_TN.reshape(num_tokens, choice.num_groups, width)
    keys_TGW = torch.where(keys_TGW.isnan(), -torch.inf, keys_TGW)
    best = keys_TGW.sort(dim=-1, descending=True).values[..., : choice.top_k // choice.top_groups]
    rank_TG = best[..., 0]
    for i in range(1, best.shape[-1]):  # in this order: sum() has one of its own
        rank_TG = rank_TG + best[..., i]
    groups_TA = select(rank_TG, choice.top_groups).sort(dim=-1).values
    allowed = keys_TGW.gather(1, groups_TA[..., None].expand(-1, -1, width))
    places_TK = select(allowed.reshape(num_tokens, choice.top_groups * width), choice.top_k)
    return groups_TA.gather(1, places_TK // width) * width + places_TK % width


def activation(x_TN: torch.Tensor, score_function: str) -> torch.Tensor:
    """Return softmax, sigmoid or sqrt(softplus) of ``x_TN``, shape (T, N)."""
    if score_function == "softmax":
        return torch.softmax(x_TN, dim=-1)
    if score_function == "sigmoid":
        return torch.sigmoid(x_TN)
    # sqrt has no derivative at 0, where softplus underflows: there sqrt(exp x) = exp(x / 2).
    low_TN = torch.exp(x_TN.clamp_max(_SMALL) / 2)
    high_TN = x_TN.clamp_min(_SMALL)
    root_TN = torch.logaddexp(high_TN, torch.zeros_like(high_TN)).sqrt()
    return torch.where(x_TN < _SMALL, low_TN, root_TN)


def scores(logits_TN: torch.Tensor, score_function: str = "softmax") -> torch.Tensor:
    """Return z = f(x), shape (T, N), in the dtype that is computed in.

    A row with NaN or +inf is NaN: softmax makes it so, the others are given it.
    """
    x_TN = logits_TN.to(accumulation_dtype(logits_TN.dtype))
    scores_TN = activation(x_TN, score_function)
    if score_function == "softmax":
        return scores_TN
    usable_T1 = x_TN.detach().amax(dim=-1, keepdim=True) < torch.inf
    return scores_TN * torch.where(usable_T1, 1, torch.nan)


def normalized(scores_TN: torch.Tensor, score_function: str) -> torch.Tensor:
    """Return what importance sums, shape (T, N): z, or z / (sum_e z + 1e-20), which softmax is."""
    if score_function == "softmax":
        return scores_TN
    return scores_TN / (scores_TN.sum(dim=-1, keepdim=True) + SUM_EPS)


@torch.no_grad()
def selection_keys(
    logits_TN: torch.Tensor,
    noise_TN: torch.Tensor | None,
    choice: Choice,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what top-k compares, shape (T, N): x + noise, or f(x + noise) + bias.

    For softmax without bias or group limit x + noise stands for softmax(x + noise): softmax is
    strictly increasing, so the order is the same, and scores that round to the same float make no
    tie.
    """
    keys_TN = logits_TN.to(accumulation_dtype(logits_TN.dtype))
    if noise_TN is not None:
        keys_TN = keys_TN + noise_TN.to(keys_TN.dtype)
    if choice.score_function == "softmax" and bias_N is None and not choice.limited:
        return keys_TN
    keys_TN = activation(keys_TN, choice.score_function)
    return keys_TN if bias_N is None else keys_TN + bias_N.to(keys_TN.dtype)


def gate_weights(
    logits_TN: torch.Tensor, scores_TN: torch.Tensor, experts_TK: torch.Tensor, choice: Choice
) -> torch.Tensor:
    """Return the weights of the chosen experts, shape (T, k) (docs/method.md "Routing" 3).

    Their scores as they are, or renormalised, which for softmax is one of the kept logits; times
    ``choice.scale``. NaN where a score of the token is NaN.
    """
    weights_TK = scores_TN.gather(1, experts_TK)
    if choice.renormalize and choice.score_function == "softmax":
        kept_TK = logits_TN.to(scores_TN.dtype).gather(1, experts_TK)
        unusable_T1 = scores_TN.detach().isnan().any(dim=-1, keepdim=True)
        weights_TK = torch.softmax(kept_TK, dim=-1).masked_fill(unusable_T1, torch.nan)
    elif choice.renormalize:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + SUM_EPS)
    return weights_TK if choice.scale == 1 else weights_TK * choice.scale


def route(
    logits_TN: torch.Tensor,
    noise_TN: torch.Tensor | None,
    taps: torch.Tensor | None,
    topo: Topography | None,
    choice: Choice,
    bias_N: torch.Tensor | None = None,
    mask_T: torch.Tensor | None = None,
) -> Outputs:
    """Return weights, experts, importance, group_loss, load and first_load of ``moge_bench.route``.

    ``taps`` and ``topo`` are None together: then no group norm is computed and the loss is 0.
    Tokens outside ``mask_T`` enter neither importance, group_loss nor the loads.
    """
    logits_TN = logits_TN.to(accumulation_dtype(logits_TN.dtype))
    scores_TN = scores(logits_TN, choice.score_function)  # z = f(x), without the noise
    # Routing 2: top-k of x + noise, or of f(x + noise) + bias.
    keys_TN = selection_keys(logits_TN, noise_TN, choice, bias_N)
    if choice.limited:
        experts_TK = select_limited(keys_TN, choice)
    else:
        experts_TK = select_experts(keys_TN, choice.top_k)
    weights_TK = gate_weights(logits_TN, scores_TN, experts_TK, choice)
    counted_TN, ones_TK = normalized(scores_TN, choice.score_function), torch.ones_like(experts_TK)
    if mask_T is not None:
        counted_TN = torch.where(mask_T[:, None], counted_TN, 0)
        ones_TK = ones_TK * mask_T[:, None]
    importance_N = counted_TN.sum(dim=0)
    # Not bincount, whose shape depends on its input as a compiler sees it.
    none_N = torch.zeros(logits_TN.shape[1], dtype=torch.int64, device=logits_TN.device)
    load_N = none_N.scatter_add(0, experts_TK.flatten(), ones_TK.flatten())
    first_load_N = none_N.scatter_add(0, experts_TK[:, 0], ones_TK[:, 0])
    if taps is None or topo is None:
        group_loss = logits_TN.new_zeros(())
    else:
        group_loss = group_norm(scores_TN, taps, topo, mask_T)
    return weights_TK, experts_TK, importance_N, group_loss, load_N, first_load_N
