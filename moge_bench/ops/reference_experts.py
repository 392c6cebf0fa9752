"""The experts of a mixture in plain PyTorch: what the fused op is tested against.

Differentiable by autograd and exact in float64. It materialises every gathered row and every
expert output. Legend: T tokens, k choices of a token, N experts, d hidden size, f hidden size of
an expert, M kept choices (at most T * k). Suffixes name axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from moge_bench.ops.reference import accumulation_dtype
from moge_bench.ops.validation import readable

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


def expert_ffn(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    experts_TK: torch.Tensor,
    w_in_NFD: torch.Tensor,
    b_in_NF: torch.Tensor | None,
    w_out_NDF: torch.Tensor,
    b_out_ND: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """Return y of ``moge_bench.ops.expert_ffn``, shape (T, d), in the dtype of ``x_TD``."""
    num_tokens, top_k = experts_TK.shape
    num_experts = w_in_NFD.shape[0]
    no_bias: Sequence[None] = (None,) * num_experts
    # unbind, not w[e]: the backward of a select would allocate all N matrices once an expert.
    first = w_in_NFD.unbind(), no_bias if b_in_NF is None else b_in_NF.unbind()
    second = w_out_NDF.unbind(), no_bias if b_out_ND is None else b_out_ND.unbind()
    activate = ACTIVATIONS[activation]
    dtype = accumulation_dtype(x_TD.dtype)
    choices = experts_TK.flatten()
    if not readable(experts_TK):
        rows_CD = x_TD[:, None].expand(-1, top_k, -1).flatten(0, 1)
        outputs_CD = masked_linear(
            activate(masked_linear(rows_CD, choices, *first)), choices, *second
        )
        weighted_CD = outputs_CD.to(dtype) * weights_TK.reshape(-1, 1).to(dtype)
        placed_CD = torch.where(choices[:, None] >= 0, weighted_CD, 0)
        return placed_CD.unflatten(0, (num_tokens, top_k)).sum(dim=1).to(x_TD.dtype)
    # The stable sort keeps token order within an expert and puts the dropped choices (-1) first.
    order = choices.argsort(stable=True)
    num_dropped, *sizes = torch.bincount(choices + 1, minlength=num_experts + 1).tolist()
    slots_M = order[num_dropped:]
    rows_MD = x_TD[slots_M // top_k]
    outputs = [
        functional.linear(activate(functional.linear(rows, w_in, b_in)), w_out, b_out)
        for rows, w_in, b_in, w_out, b_out in zip(
            rows_MD.split(sizes), *first, *second, strict=True
        )
    ]
    # y[t] = sum_i weights[t, i] FFN_{experts[t, i]}(x[t]), accumulated in float32 (float64).
    weighted_MD = torch.cat(outputs).to(dtype) * weights_TK.flatten()[slots_M, None].to(dtype)
    placed_CD = weighted_MD.new_zeros((num_tokens * top_k, x_TD.shape[1]))
    placed_CD = placed_CD.index_copy(0, slots_M, weighted_MD)
    return placed_CD.unflatten(0, (num_tokens, top_k)).sum(dim=1).to(x_TD.dtype)


def masked_linear(
    rows_RI: torch.Tensor,
    expert_R: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Return weights[e] rows[r] + biases[e], e = expert[r], (R, O); 0 where that is no expert.

    For an ``expert_R`` whose values cannot be read (``readable``): every expert gets every row,
    with zeros for those of others, so that their NaN reach neither its output nor its gradients.
    """
    outputs_RO = rows_RI.new_zeros((rows_RI.shape[0], weights[0].shape[0]))
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        own_R1 = (expert_R == number)[:, None]
        output_RO = functional.linear(torch.where(own_R1, rows_RI, 0), weight, bias)
        outputs_RO = outputs_RO + torch.where(own_R1, output_RO, 0)
    return outputs_RO
