"""How many tokens an expert takes, and which choices are dropped (V-MoE, arXiv 2106.05974).

Legend: T tokens, k choices of a token, N experts, C capacity factor.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch._subclasses.fake_tensor import FakeTensor

from moge_bench.ops.validation import FLOAT_DTYPES

Ratio = tuple[int, int, bool]


def expert_capacity(
    num_tokens: int | torch.Tensor, top_k: int, num_experts: int, capacity_factor: float
) -> int | torch.Tensor:
    """Return how many choices one expert takes: B = ceil(k T C / N).

    V-MoE's paper (section 2.4) rounds to the nearest; its code takes the ceiling, as here, and
    then goes up to a multiple of 4. Deviations: no multiple of 4, which serves padding on TPUs;
    and C is taken as the decimal number it prints as, so that 10 choices at C = 1.1 give 11,
    where the product in floating point, 11.000000000000002, would give 12.

    ``num_tokens`` is an int, one of torch.compile's symbolic ones too, or a tensor () int64, and
    so is what is returned. Exact where k T < 2^31 and k T C < 2^32.
    """
    for name, value in (("top_k", top_k), ("num_experts", num_experts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    return _capacity(num_tokens, top_k, num_experts, capacity_ratio(capacity_factor))


def _capacity(
    num_tokens: int | torch.Tensor, top_k: int, num_experts: int, ratio: Ratio
) -> int | torch.Tensor:
    numerator, denominator, is_above = ratio
    choices, unit = num_tokens * top_k * numerator, num_experts * denominator
    if is_above:
        return (choices // unit + 1) * (num_tokens > 0)
    return -(-choices // unit)


def capacity_ratio(capacity_factor: float) -> Ratio:
    """Return (p, q, C > p / q), p / q the last convergent of C with q <= 2^31.

    With it k T C / N needs 64-bit integers alone, where C printed to 16 digits is a ratio of
    53-bit ones. C differs from p / q by less than 1 / (q 2^31), so for m < 2^31 choices no whole
    number lies strictly between m C / N and m p / (q N). Where the latter is whole, and C above
    p / q, the ceiling is the next one.
    """
    if isinstance(capacity_factor, bool) or not isinstance(capacity_factor, (int, float)):
        raise TypeError(f"capacity_factor must be a positive number, got {capacity_factor!r}")
    if not (math.isfinite(capacity_factor) and capacity_factor > 0):
        raise ValueError(
            f"capacity_factor must be positive and finite, got {capacity_factor!r}; "
            "1.0 is just enough for a balanced load, None drops nothing"
        )
    exact = Fraction(repr(float(capacity_factor)))
    (p, last_p), (q, last_q) = (1, 0), (0, 1)
    numerator, denominator = exact.numerator, exact.denominator
    while denominator:
        digit, rest = divmod(numerator, denominator)
        if digit * q + last_q > 2**31:
            break
        (p, last_p), (q, last_q) = (digit * p + last_p, p), (digit * q + last_q, q)
        numerator, denominator = denominator, rest
    return p, q, exact > Fraction(p, q)


# What torch.compiler.assume_constant_result sets, which imports torch._dynamo: several
# seconds of `import moge_bench`, which then loads nothing of it.
capacity_ratio._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    ratio = capacity_ratio(capacity_factor)
    return drop_excess(experts, weights, num_experts, ratio, batch_priority)


@torch.no_grad()
def drop_excess(
    experts: torch.Tensor,
    weights: torch.Tensor,
    num_experts: int,
    ratio: Ratio,
    batch_priority: bool = False,
    num_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """``limit_capacity`` of what a router chose, whose values need no check and no wait for them.

    ``ratio`` is ``capacity_ratio(capacity_factor)``. ``num_tokens``, () int64, is how many tokens
    count, where not all do; it decides the capacity.
    """
    total, top_k = experts.shape
    capacity = _capacity(total if num_tokens is None else num_tokens, top_k, num_experts, ratio)
    if batch_priority:
        tokens = weights.amax(dim=1).argsort(descending=True, stable=True)
    else:
        tokens = torch.arange(total, device=experts.device)
    queue = experts[tokens].t().flatten()  # the choices in order of allocation, (k T,)
    in_line, order = queue.sort(stable=True)
    # An expert's choices stand together: a choice's place is its distance from the first of them.
    first = torch.searchsorted(in_line, in_line)
    place = torch.empty_like(queue)
    place[order] = torch.arange(queue.numel(), device=experts.device) - first
    kept = torch.where(place < capacity, queue, -1)
    limited = torch.empty_like(experts)
    limited[tokens] = kept.unflatten(0, (top_k, total)).t()
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
    if torch.compiler.is_compiling() or experts.is_meta or isinstance(experts, FakeTensor):
        return  # there are no values to look at
    if experts.numel() and not (experts.min() >= -1 and experts.max() < num_experts):
        raise ValueError(
            f"experts must hold -1 (dropped) or indices from 0 to {num_experts - 1}, got values "
            f"from {int(experts.min())} to {int(experts.max())}"
        )
