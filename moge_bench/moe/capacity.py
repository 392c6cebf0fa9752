"""How many tokens an expert takes, and which choices are dropped (V-MoE, arXiv 2106.05974).

Legend: T tokens, k choices of a token, N experts, C capacity factor.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from moge_bench.ops.validation import FLOAT_DTYPES


def expert_capacity(num_tokens: int, top_k: int, num_experts: int, capacity_factor: float) -> int:
    """Return how many choices one expert takes: B = ceil(k T C / N).

    V-MoE's paper (section 2.4) rounds to the nearest; its code takes the ceiling, as here, and
    then goes up to a multiple of 4. Deviations: no multiple of 4, which serves padding on TPUs;
    and C is taken as the decimal number it prints as, so that 10 choices at C = 1.1 give 11,
    where the product in floating point, 11.000000000000002, would give 12.
    """
    for name, value in (("top_k", top_k), ("num_experts", num_experts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    if isinstance(capacity_factor, bool) or not isinstance(capacity_factor, (int, float)):
        raise TypeError(f"capacity_factor must be a positive number, got {capacity_factor!r}")
    if not (math.isfinite(capacity_factor) and capacity_factor > 0):
        raise ValueError(
            f"capacity_factor must be positive and finite, got {capacity_factor!r}; "
            "1.0 is just enough for a balanced load, None in a config drops nothing"
        )
    return math.ceil(Fraction(repr(float(capacity_factor))) * num_tokens * top_k / num_experts)


@torch.no_grad()
def limit_capacity(
    experts: torch.Tensor,
    weights: torch.Tensor,
    num_experts: int,
    capacity_factor: float,
    batch_priority: bool = False,
) -> torch.Tensor:
    """Drop the choices that exceed an expert's capacity; return ``experts`` with -1 there.

    All first choices are allocated before all second choices, and so on; among choices of equal
    rank the tokens come in their order in the batch (V-MoE, section 2.4), or with
    ``batch_priority`` in descending order of a token's largest weight, equal ones in batch order
    (Batch Prioritized Routing, section 4.1). The first B = ``expert_capacity(...)`` choices of an
    expert are kept.

    Args:
        experts: (T, k) int64, each from -1 (already dropped, takes no room) to N - 1.
        weights: (T, k) float, the gate weights; read with ``batch_priority`` only. Renormalised
            weights of k = 1 are all 1 and give batch order.
        num_experts: N.
        capacity_factor: C > 0.
        batch_priority: which of the two orders.

    Returns:
        (T, k) int64, a tensor of its own. Not differentiable: it only selects.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """
    _check_routing(experts, weights, num_experts)
    num_tokens, top_k = experts.shape
    capacity = expert_capacity(num_tokens, top_k, num_experts, capacity_factor)
    if batch_priority:
        tokens = weights.amax(dim=1).argsort(descending=True, stable=True)
    else:
        tokens = torch.arange(num_tokens, device=experts.device)
    # queue: the choices in order of allocation, (k T,); bucket 0 holds those already dropped.
    queue = experts[tokens].t().flatten() + 1
    order = queue.argsort(stable=True)
    sizes = torch.bincount(queue, minlength=num_experts + 1)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(queue)
    place[order] = torch.arange(queue.numel(), device=experts.device) - first[queue[order]]
    kept = torch.where(place < capacity, queue - 1, -1)
    limited = torch.empty_like(experts)
    limited[tokens] = kept.unflatten(0, (top_k, num_tokens)).t()
    return limited


def _check_routing(experts: torch.Tensor, weights: torch.Tensor, num_experts: int) -> None:
    """Check ranks, dtypes, sizes and the range of ``experts``."""
    for name, tensor in (("experts", experts), ("weights", weights)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != 2 or tensor.shape[1] < 1:
            raise ValueError(
                f"{name} must have shape (num_tokens, top_k) with top_k >= 1, "
                f"got {tuple(tensor.shape)}"
            )
    if experts.dtype != torch.int64:
        raise TypeError(f"experts must be int64, got {experts.dtype}; call experts.long() first")
    if weights.dtype not in FLOAT_DTYPES:
        raise TypeError(f"weights must be float32, float64 or bfloat16, got {weights.dtype}")
    if weights.shape != experts.shape or weights.device != experts.device:
        raise ValueError(
            f"weights must have the shape and device of experts, {tuple(experts.shape)} on "
            f"{experts.device}; got {tuple(weights.shape)} on {weights.device}"
        )
    if isinstance(num_experts, bool) or not isinstance(num_experts, int) or num_experts < 1:
        raise ValueError(f"num_experts must be an int of at least 1, got {num_experts!r}")
    if experts.numel() and not (experts.min() >= -1 and experts.max() < num_experts):
        raise ValueError(
            f"experts must hold -1 (dropped) or indices from 0 to {num_experts - 1}, got values "
            f"from {int(experts.min())} to {int(experts.max())}"
        )
