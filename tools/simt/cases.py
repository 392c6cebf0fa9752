"""Cases for the routing kernels of csrc/cuda: their inputs, and what the reference makes of them.

Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, default_map_shape, gaussian_taps

# Below, at and above every power of two up to 1024 at which a kernel changes its shape.
SIZES = (1, 2, 5, 31, 32, 33, 64, 100, 128, 255, 256, 300, 512, 1000, 1024)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One routing problem; the groups are None where group_size is."""

    num_tokens: int
    num_experts: int
    top_k: int
    dtype: torch.dtype = torch.float32
    group_size: int | None = 3
    stride: int = 1
    border: str = "torus"
    reduction: str = "token_mean"
    renormalize: bool = True
    noisy: bool = False
    sigma: float | None = 1.0
    map_shape: tuple[int, int] | None = None
    grads: tuple[bool, bool, bool] = (True, True, True)  # weights, importance, loss
    shift: int = 0  # elements off alignment
    spread: float = 2.0

    @property
    def topo(self) -> Topography | None:
        """The groups, or None; without wrapping no window is larger than the map."""
        if self.group_size is None:
            return None
        rows, cols = self.map_shape or default_map_shape(self.num_experts)
        h = self.group_size if self.border == "torus" else min(self.group_size, rows, cols)
        return Topography(rows, cols, h, self.stride, self.border, self.reduction)

    def __str__(self) -> str:
        shown = [f"T{self.num_tokens}", f"N{self.num_experts}", f"k{self.top_k}"]
        return "-".join([*shown, str(self.dtype)[6:], f"h{self.group_size}", self.border])


def every_case() -> Iterator[Case]:
    """Every size in every dtype, with the other settings going round at different speeds."""
    borders, strides = itertools.cycle(["torus", "valid"]), itertools.cycle([1, 2, 3])
    reductions = itertools.cycle(["token_mean", "official_image", "official_language"])
    grads = itertools.cycle([(True, True, True), (True, False, True), (False, True, False),
                             (False, False, True), (True, False, False)])  # fmt: skip
    choices = itertools.cycle([1, 2, 3, 4, 5, 6, 7, 8, 24])
    tokens = itertools.cycle([1, 13, 37])
    settings = itertools.product(SIZES, DTYPES, range(2))
    for number, (num_experts, dtype, variant) in enumerate(settings, 1):
        yield Case(
            next(tokens), num_experts, min(next(choices), num_experts), dtype,
            group_size=(3, 3, 2, 4, 3, 1, None)[number % 7], stride=next(strides),
            border=next(borders), reduction=next(reductions), renormalize=number % 5 < 3,
            noisy=number % 2 == variant, grads=next(grads), shift=number % 4 == 3,
            sigma=(1.0, 0.5, None)[number % 3],
        )  # fmt: skip


SPECIAL = (
    Case(0, 16, 2), Case(0, 33, 3, torch.float16, renormalize=False),
    Case(1, 1, 1, group_size=1), Case(7, 64, 64), Case(5, 100, 100, renormalize=False),
    Case(21, 12, 3, map_shape=(12, 1)), Case(21, 12, 3, map_shape=(2, 6), group_size=7),
    Case(21, 24, 3, group_size=4, stride=5, border="valid", map_shape=(4, 6)),
    Case(21, 64, 2, torch.bfloat16, spread=30.0), Case(21, 64, 2, spread=200.0),
    Case(2500, 8, 2, border="valid", group_size=2), Case(777, 33, 1),
    Case(37, 64, 2, border="valid", sigma=0.02),  # the middle tap is 1 and the others 0
    Case(37, 256, 2, border="valid", group_size=5, sigma=20.0),
)  # fmt: skip


def draw(case: Case) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return logits and noise on a grid coarse enough that float32 adds them exactly.

    So float64 selects the same experts, and there are ties.
    """
    generator = torch.Generator().manual_seed(case.num_experts * 31 + case.num_tokens)
    shape = (case.num_tokens, case.num_experts)
    logits = torch.randn(shape, generator=generator) * case.spread
    logits = ((logits * 64).round() / 64).to(case.dtype)
    noise = (torch.randn(shape, generator=generator) * 64).round() / 64 if case.noisy else None
    return logits, noise


def draw_not_finite(num_experts: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 11 rows of logits and noise, N >= 5; the first bad ones are 1 and 4.

    NaN, infinities, rows of nothing else, fewer experts above -inf than are chosen, and ties.
    """
    generator = torch.Generator().manual_seed(num_experts)
    logits = (torch.randn(11, num_experts, generator=generator) * 64).round().div(64).to(dtype)
    logits[1, 2] = torch.nan
    logits[3, 0] = torch.inf
    logits[5] = -torch.inf
    logits[7, : num_experts - 2] = -torch.inf
    logits[7, 2:num_experts:3] = torch.nan  # ranks as -inf, wherever it stands
    logits[8] = torch.where(torch.arange(num_experts) % 2 == 0, torch.nan, -torch.inf)
    logits[9] = torch.nan
    noise = torch.zeros(11, num_experts)
    noise[4, 1], noise[6, 3] = torch.nan, torch.inf
    noise[7, num_experts - 1] = -torch.inf
    noise[10, 3:] = -torch.inf
    return logits, noise


def upstream(case: Case) -> list[torch.Tensor | None]:
    """Return gradients of weights, importance and loss: None for what has none in this case."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(case.num_tokens, case.top_k), (case.num_experts,), ()]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    if case.reduction == "token_mean":
        values[2] = values[2] * max(case.num_tokens, 1)  # so that it weighs as much as the others
    return [value if used else None for value, used in zip(values, case.grads, strict=True)]


def by_reference(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what reference.py makes of the case, computed in ``dtype``, with grad_logits."""
    logits, noise = draw(case)
    x = logits.to(dtype).requires_grad_()
    topo = case.topo
    taps = gaussian_taps(topo.group_size, case.sigma) if topo else None
    choice = Choice(case.num_experts, case.top_k, case.renormalize)
    weights, experts, importance, loss, load, first_load = reference.route(
        x, noise, taps, topo, choice
    )
    outputs = [
        (output, grad.to(dtype))
        for output, grad in zip((weights, importance, loss), upstream(case), strict=True)
        if grad is not None and output.requires_grad
    ]
    grad_logits = torch.zeros_like(x)
    if outputs:
        results, grads = zip(*outputs, strict=True)
        grad_logits = torch.autograd.grad(results, x, grads)[0]
    detached = {"weights": weights, "importance": importance, "group_loss": loss}
    result = {name: value.detach() for name, value in detached.items()}
    # The gradient is of the logits' own dtype: rounded once, after everything.
    rounded = grad_logits if dtype == torch.float64 else grad_logits.to(logits.dtype)
    return {
        **result,
        "experts": experts,
        "load": load,
        "first_load": first_load,
        "grad_logits": rounded,
    }
