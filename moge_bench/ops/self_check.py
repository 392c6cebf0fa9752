"""Compares every kernel with the reference where kernels go wrong: ties, odd sizes, borders, tails.

``moge-bench doctor`` runs it, in a second or two: forward, and backward from each output by itself,
since in a sum a large gradient hides a small one's fault. Legend: T tokens, N experts, k chosen, h
group side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.ops.group_norm import group_norm
from moge_bench.ops.route import route

# Of the largest value of what is compared: sums in another order, and for bfloat16 one rounding.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}
# At h = 1 the group loss hardly depends on the logits, and its gradient is what rounding leaves.
_LEAST_SCALE = 0.1


@dataclass(frozen=True)
class Shape:
    """One comparison of route and group_norm; ``ties`` draws logits from five integers."""

    num_tokens: int
    num_experts: int
    top_k: int
    group_size: int
    border: str
    stride: int = 1
    sigma: float | None = 1.0
    renormalize: bool = True
    noise: bool = False
    ties: bool = True
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        options = [self.border, f"stride={self.stride}" if self.stride > 1 else "",
                   "" if self.sigma else "box", "" if self.renormalize else "scores as weights",
                   "noise" if self.noise else "", "ties" if self.ties else ""]  # fmt: skip
        return (
            f"T={self.num_tokens} N={self.num_experts} k={self.top_k} h={self.group_size} "
            f"{' '.join(filter(None, options))} {str(self.dtype).removeprefix('torch.')}"
        )


# Tiles are 8 or 16 tokens by N experts, chunks 512 tokens: T and N below, between and beyond. k up
# to 8 is selected by insertion, more by a sort; h up to 5 with stride 1 is unrolled, more is not.
SHAPES = (
    Shape(1, 1, 1, 1, "valid"),
    Shape(37, 5, 2, 1, "valid"),
    Shape(37, 5, 2, 3, "torus", renormalize=False),
    Shape(9, 7, 7, 1, "torus"),
    Shape(100, 7, 1, 2, "torus", noise=True),
    Shape(33, 8, 2, 2, "valid"),
    Shape(100, 64, 2, 3, "valid"),
    Shape(100, 64, 2, 3, "torus", ties=False),
    Shape(100, 64, 4, 5, "valid", sigma=None),
    Shape(17, 64, 8, 7, "torus"),
    Shape(31, 64, 2, 3, "valid", stride=2),
    Shape(31, 64, 2, 4, "torus", stride=2, renormalize=False, noise=True),
    Shape(530, 100, 9, 3, "valid", ties=False),
    Shape(41, 100, 3, 3, "torus", dtype=torch.float64),
    Shape(41, 100, 3, 3, "valid", renormalize=False, dtype=torch.float64),
    Shape(41, 100, 3, 3, "valid", dtype=torch.bfloat16),
    Shape(41, 7, 2, 1, "valid", ties=False, dtype=torch.bfloat16),
)
Results = dict[str, torch.Tensor]


class DifferenceError(Exception):
    """A kernel's result is not the reference's; the message names the case and the quantity."""


def _draw(shape: Shape, device: str) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(shape.num_tokens)
    size = (shape.num_tokens, shape.num_experts)
    if shape.ties:
        values = torch.randint(-2, 3, size, generator=generator).double()
    else:
        values = torch.randn(size, generator=generator, dtype=torch.float64)
    return values.to(device, shape.dtype).requires_grad_(), generator


def _gradients(outputs: Results, inputs: Results, generator: torch.Generator) -> Results:
    """Return dL/dinput of every pair, L = the sum of the output times random numbers, 1 or more.

    A loss is a mean over tokens and groups: it is taken times T N, so that gradients are near 1.
    """
    found = {}
    for name, output in outputs.items():
        upstream = 1 + torch.rand(output.shape, generator=generator, dtype=torch.float64)
        if output.dim() == 0:
            upstream *= next(iter(inputs.values())).numel()
        for other, value in inputs.items():
            (found[f"the gradient of {other} through {name}"],) = torch.autograd.grad(
                output, value, upstream.to(output), retain_graph=True
            )
    return found


def _route(shape: Shape, backend: str, device: str) -> Results:
    logits, generator = _draw(shape, device)
    noise = None
    if shape.noise:  # integers too, so that the sums tie
        size = (shape.num_tokens, shape.num_experts)
        noise = torch.randint(-1, 2, size, generator=generator).to(device, shape.dtype)
    r = route(
        logits, shape.top_k, group_size=shape.group_size, sigma=shape.sigma, stride=shape.stride,
        border=shape.border, renormalize=shape.renormalize, noise=noise, backend=backend,
    )  # fmt: skip
    differentiable = {"weights": r.weights, "importance": r.importance, "group_loss": r.group_loss}
    whole = {"experts": r.experts, "load": r.load}
    return whole | differentiable | _gradients(differentiable, {"logits": logits}, generator)


def _group_norm(shape: Shape, backend: str, device: str) -> Results:
    scores, generator = _draw(shape, device)
    scores = scores.detach().abs().requires_grad_()  # as scores are
    loss = group_norm(
        scores, group_size=shape.group_size, sigma=shape.sigma, stride=shape.stride,
        border=shape.border, backend=backend,
    )  # fmt: skip
    return {"the loss": loss} | _gradients({"the loss": loss}, {"scores": scores}, generator)


@dataclass(frozen=True)
class Ffn:
    """One comparison of expert_ffn; of T * k choices a fifth is dropped, one expert gets none."""

    num_tokens: int
    hidden: int
    ffn: int
    num_experts: int
    top_k: int
    activation: str
    bias: bool
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        sizes = f"T={self.num_tokens} d={self.hidden} f={self.ffn} N={self.num_experts}"
        bias = "bias" if self.bias else "no bias"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{sizes} k={self.top_k} {self.activation} {bias} {dtype}"


FFNS = tuple(
    Ffn(*sizes, activation, bias, dtype)
    for dtype in TOLERANCES
    for sizes, activation, bias in (
        ((37, 19, 21, 5, 2), "gelu", True),
        ((1, 1, 3, 1, 1), "relu", True),
        ((50, 7, 33, 4, 3), "silu", False),
    )
)


def _expert_ffn(case: Ffn, backend: str, device: str) -> Results:
    generator = torch.Generator().manual_seed(case.num_tokens)

    def draw(*size: int) -> torch.Tensor:
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return values.to(device, case.dtype).requires_grad_()

    n, d, f = case.num_experts, case.hidden, case.ffn
    inputs = {"x": draw(case.num_tokens, d), "w_in": draw(n, f, d), "w_out": draw(n, d, f)}
    if case.bias:
        inputs |= {"b_in": draw(n, f), "b_out": draw(n, d)}
    # float32 for bfloat16 rows, as the router gives them.
    weights = draw(case.num_tokens, case.top_k).detach()
    weights = weights.double() if case.dtype == torch.float64 else weights.float()
    inputs["weights"] = weights.requires_grad_()
    choices = (case.num_tokens, case.top_k)
    experts = torch.randint(0, max(n - 1, 1), choices, generator=generator)
    experts[torch.rand(choices, generator=generator) < 0.2] = -1
    y = expert_ffn(
        inputs["x"], inputs["weights"], experts.to(device), inputs["w_in"], inputs.get("b_in"),
        inputs["w_out"], inputs.get("b_out"), activation=case.activation, backend=backend,
    )  # fmt: skip
    return {"y": y} | _gradients({"y": y}, inputs, generator)


def _cases(op: str, device: str) -> Iterator[tuple[Any, Any]]:
    """Yield (what to run, with which case); float64 has no kernels on a GPU."""
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "route": (_route, SHAPES), "group_norm": (_group_norm, SHAPES),
        "expert_ffn": (_expert_ffn, FFNS),
    }  # fmt: skip
    if op not in functions:
        raise ValueError(f"op must be one of {tuple(functions)}, got {op!r}")
    function, cases = functions[op]
    for case in cases:
        if device == "cpu" or case.dtype != torch.float64:
            yield function, case


def compare(op: str, device: str = "cpu") -> str:
    """Compare ``op`` ("route", "group_norm" or "expert_ffn") with the reference, case by case.

    Choices of experts and loads must be equal, everything else within ``TOLERANCES`` of its largest
    value. Returns a sentence with the number of cases and the worst difference. Raises
    DifferenceError at the first case that differs, and what the op raises, with the case's name.
    """
    count, worst = 0, 0.0
    for run, case in _cases(op, device):
        try:
            got, expected = run(case, "extension", device), run(case, "reference", device)
        except Exception as error:
            raise DifferenceError(f"{case}: {type(error).__name__}: {error}") from error
        for name, want in expected.items():
            by = difference(f"{case}: {name}", got[name], want, TOLERANCES[case.dtype])
            worst = worst if case.dtype == torch.bfloat16 else max(worst, by)
        count += 1
    return (
        f"as the reference in {count} cases (ties, odd sizes, borders, forward and backward), "
        f"worst difference {worst:.0e} of the largest value"
    )


def difference(
    name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float, least: float = 0.0
) -> float:
    """Return by how much of ``want``'s largest value ``got`` differs; integers must be equal.

    ``least``: a scale below which no value of ``want`` counts as the largest one. Raises
    DifferenceError, with ``name``, for more than ``tolerance``, another shape or another dtype.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        raise DifferenceError(
            f"{name} is {tuple(got.shape)} {got.dtype}, the reference's {tuple(want.shape)} "
            f"{want.dtype}"
        )
    if not want.is_floating_point():
        if not torch.equal(got, want):
            differing = int((got != want).sum())
            raise DifferenceError(
                f"{name} differs from the reference's in {differing} of {want.numel()}"
            )
        return 0.0
    scale = max(float(want.detach().abs().max()), least)
    scale = max(scale, _LEAST_SCALE) if "gradient" in name else scale or 1.0
    error = float((got.detach().double() - want.detach().double()).abs().max()) / scale
    if not error <= tolerance:  # also true of NaN
        raise DifferenceError(
            f"{name} differs from the reference's by {error:.1e} of its largest value, more than "
            f"{tolerance:.0e}"
        )
    return error
