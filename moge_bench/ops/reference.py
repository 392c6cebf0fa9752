"""The specification in plain PyTorch: what the extension, compiled or not, is tested against.

Line for line with docs/method.md "Routing" and "Group-sparse loss", differentiable by autograd and
exact in float64. Slow on purpose: it materialises everything.

Legend: T tokens, N experts, k chosen, (r, c) map, h group side, P groups. Suffixes name axes.
"""

from __future__ import annotations

import torch

from moge_bench.ops.topography import EPS, Topography

# weights, experts, importance, group_loss, load, first_load
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def group_norms(scores_TN: torch.Tensor, taps: torch.Tensor, topo: Topography) -> torch.Tensor:
    """Return g of docs/method.md, shape (T, P).

    g[t, p] = sqrt( sum_{u,v} G[u,v] z[t, i*s+u, j*s+v]^2 + eps ), with G[u,v] = taps[u] taps[v].
    """
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


def scores(logits_TN: torch.Tensor) -> torch.Tensor:
    """Return z = softmax(x), shape (T, N), in the dtype that is computed in."""
    return torch.softmax(logits_TN.to(accumulation_dtype(logits_TN.dtype)), dim=-1)


@torch.no_grad()
def selection_keys(
    logits_TN: torch.Tensor, noise_TN: torch.Tensor | None, bias_N: torch.Tensor | None
) -> torch.Tensor:
    """Return what top-k compares, shape (T, N): x + noise, or softmax(x + noise) + bias.

    Without bias x + noise stands for softmax(x + noise): softmax is strictly increasing, so the
    order is the same, and scores that round to the same float make no tie.
    """
    keys_TN = logits_TN.to(accumulation_dtype(logits_TN.dtype))
    if noise_TN is not None:
        keys_TN = keys_TN + noise_TN.to(keys_TN.dtype)
    if bias_N is not None:
        keys_TN = torch.softmax(keys_TN, dim=-1) + bias_N.to(keys_TN.dtype)
    return keys_TN


def gate_weights(
    logits_TN: torch.Tensor, scores_TN: torch.Tensor, experts_TK: torch.Tensor, renormalize: bool
) -> torch.Tensor:
    """Return the weights of the chosen experts, shape (T, k) (docs/method.md "Routing" 3).

    Their scores as they are, or renormalised, which is a softmax of the kept logits.
    """
    if not renormalize:
        return scores_TN.gather(1, experts_TK)
    weights_TK = torch.softmax(logits_TN.to(scores_TN.dtype).gather(1, experts_TK), dim=-1)
    unusable_T1 = scores_TN.detach().isnan().any(dim=-1, keepdim=True)
    return weights_TK.masked_fill(unusable_T1, torch.nan)


def route(
    logits_TN: torch.Tensor,
    noise_TN: torch.Tensor | None,
    taps: torch.Tensor | None,
    top_k: int,
    topo: Topography | None,
    renormalize: bool,
    bias_N: torch.Tensor | None = None,
    mask_T: torch.Tensor | None = None,
) -> Outputs:
    """Return weights, experts, importance, group_loss, load and first_load of ``moge_bench.route``.

    ``taps`` and ``topo`` are None together: then no group norm is computed and the loss is 0.
    Tokens outside ``mask_T`` enter neither importance, group_loss nor the loads.
    """
    logits_TN = logits_TN.to(accumulation_dtype(logits_TN.dtype))
    scores_TN = scores(logits_TN)  # z = softmax(x), without the noise
    # Routing 2: top-k of x + noise, or of softmax(x + noise) + bias.
    experts_TK = select_experts(selection_keys(logits_TN, noise_TN, bias_N), top_k)
    weights_TK = gate_weights(logits_TN, scores_TN, experts_TK, renormalize)
    counted_TN, ones_TK = scores_TN, torch.ones_like(experts_TK)
    if mask_T is not None:
        counted_TN = torch.where(mask_T[:, None], scores_TN, 0)
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
