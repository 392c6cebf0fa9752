"""The correctness verdict of a benchmark row: a float64 oracle and PyTorch's own float32 error.

Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import gaussian_taps
from moge_bench.perf.registry import Case

CHUNK = 4096  # tokens per oracle pass: the reference materialises h^2 float64 maps
FACTOR = 2.0  # an error may be twice PyTorch's own in the same dtype (no magic atol)


@dataclass(frozen=True)
class Result:
    """What one router computed: dense weights (T, N), chosen (T, N) bool, loss, gradient (T, N)."""

    weights: torch.Tensor
    chosen: torch.Tensor
    loss: torch.Tensor | None
    grad: torch.Tensor


@dataclass(frozen=True)
class Verdict:
    """Errors against the oracle, each relative to the largest entry, beside its bound.

    ``mismatches`` counts tokens whose set of experts differs from the oracle's; ``ties`` those of
    them whose scores differ by less than the rounding of a float32 softmax.
    """

    ok: bool
    detail: str
    errors: dict[str, float]
    bounds: dict[str, float]
    mismatches: int
    ties: int


def to_dense(
    weights: torch.Tensor, experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dense weights and the map of the chosen, (T, N); dense input passes through."""
    if experts.dtype == torch.bool:
        return weights, experts
    dense = weights.new_zeros(weights.shape[0], num_experts).scatter(1, experts, weights)
    chosen = torch.zeros_like(dense, dtype=torch.bool).scatter(1, experts, True)
    return dense, chosen


def cotangents(case: Case) -> torch.Tensor:
    """Return dL/dweight for every (token, expert), (T, N) float32, N(0, 1)."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    return torch.randn(case.num_tokens, case.num_experts, generator=generator)


def oracle(logits: torch.Tensor, case: Case, dtype: torch.dtype, *, with_loss: bool) -> Result:
    """Return the reference's outputs and the gradient of sum(C * weights) + T * loss in ``dtype``.

    The loss is scaled by T so that its share of the gradient is as large as that of the weights.
    """
    taps = gaussian_taps(case.group_size, 1.0).to(logits.device)
    cotangent = cotangents(case).to(logits.device, dtype)
    choice = Choice(case.num_experts, case.top_k, case.renormalize)
    parts, total = [], torch.zeros((), dtype=torch.float64)
    for start in range(0, case.num_tokens, CHUNK):
        x = logits[start : start + CHUNK].to(dtype).requires_grad_()
        weights, experts, _, loss, *_ = reference.route(
            x, None, taps.to(dtype), case.topography, choice
        )
        dense, chosen = to_dense(weights, experts, case.num_experts)
        # loss is the mean over the chunk, so its sum over tokens is loss * len(x).
        objective = (dense * cotangent[start : start + CHUNK]).sum()
        if with_loss:
            objective = objective + loss * len(x)
        (grad,) = torch.autograd.grad(objective, x)
        parts.append((dense.detach(), chosen, grad))
        total += loss.detach().double().cpu() * len(x)
    weights, chosen, grad = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Result(weights, chosen, total / case.num_tokens if with_loss else None, grad)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Return max |value - truth| / max |truth|, infinite where value is not finite."""
    if value.numel() == 0:
        return 0.0
    error = (value.double() - truth.double()).abs().max().item()
    scale = truth.double().abs().max().item() or 1.0
    return error / scale if error == error else float("inf")


def verify(result: Result, truth: Result, plain: Result, scores: torch.Tensor) -> Verdict:
    """Judge ``result`` against the float64 ``truth``; ``plain`` is PyTorch's own in low precision.

    The bound of each error is twice that of ``plain`` plus one rounding of the dtype; a row whose
    set of experts differs must be a rounding tie, and is left out of the other errors.
    ``scores`` is the float64 softmax, (T, N).
    """
    differs_T = (result.chosen != truth.chosen).any(dim=1)
    eps = torch.finfo(torch.float32).eps
    picked = scores.masked_fill(~result.chosen, torch.inf).amin(dim=1)
    wanted = scores.masked_fill(~truth.chosen, torch.inf).amin(dim=1)
    sizes_T = result.chosen.sum(dim=1) == truth.chosen.sum(dim=1)
    ties_T = differs_T & sizes_T & (picked >= wanted * (1 - 8 * eps))
    keep = ~differs_T
    pairs = {"weights": (result.weights, truth.weights, plain.weights),
             "gradient": (result.grad, truth.grad, plain.grad)}  # fmt: skip
    errors, bounds = {}, {}
    for name, (got, want, own) in pairs.items():
        unit = torch.finfo(got.dtype).eps
        errors[name] = relative_error(got[keep], want[keep])
        bounds[name] = FACTOR * relative_error(own, want) + unit
    if result.loss is not None and truth.loss is not None and plain.loss is not None:
        errors["loss"] = relative_error(result.loss, truth.loss)
        bounds["loss"] = FACTOR * relative_error(plain.loss, truth.loss) + eps
    wrong = int((differs_T & ~ties_T).sum())
    complaints = [
        f"{name} error {errors[name]:.2e} above its bound {bounds[name]:.2e}"
        for name in errors
        if not errors[name] <= bounds[name]
    ]
    if wrong:
        complaints.append(f"{wrong} tokens have the wrong experts")
    return Verdict(
        not complaints, "; ".join(complaints) or "within bounds", errors, bounds,
        int(differs_T.sum()), int(ties_T.sum()),
    )  # fmt: skip
