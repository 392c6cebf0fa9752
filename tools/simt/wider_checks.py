"""Checks of the kernels of the wider routing against the float64 reference, on any build of them.

As checks.py, for emulator and interpreted PTX alike. Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, default_map_shape, gaussian_taps
from tools.simt.kernels import Kernels, Outputs
from tools.simt.wider import Wider


@dataclass(frozen=True)
class WiderCase:
    """One routing problem with noise on a torus; ``options`` are those of ``Choice``.

    A masked case has a row of padding that is NaN.
    """

    num_experts: int
    top_k: int
    options: Mapping[str, Any] = field(default_factory=dict)
    biased: bool = False
    masked: bool = False
    unit_energy: bool = False
    reduction: str = "token_mean"
    num_tokens: int = 19

    def __str__(self) -> str:
        marks = [*self.options, *(["bias"] if self.biased else []), *(["mask"] * self.masked)]
        return f"N{self.num_experts}-k{self.top_k}-{'-'.join(marks)}-{self.reduction}"


# Every size class, function, reduction, and each of the rest with and without.
CASES = (
    WiderCase(8, 2, {"score_function": "sigmoid"}),
    WiderCase(33, 3, {"score_function": "sqrtsoftplus", "scale": 2.5}, True, True, True),
    WiderCase(64, 2, {}, False, True, True),
    WiderCase(64, 8, {"num_groups": 8, "top_groups": 4, "score_function": "sigmoid"}, True, False,
              True, "official_image"),
    WiderCase(100, 40, {"renormalize": False, "scale": 0.5}, True, True, False,
              "official_language"),
    WiderCase(128, 33, {"score_function": "sigmoid", "scale": 2.5}),
    WiderCase(256, 4, {"num_groups": 32, "top_groups": 2}, False, False, True),
    WiderCase(300, 5, {"score_function": "sqrtsoftplus", "renormalize": False}, False, True),
    WiderCase(1024, 32, {"num_groups": 16, "top_groups": 8, "score_function": "sigmoid",
                         "scale": 2.5}, True, True, True, "official_image"),
)  # fmt: skip
BAD_ROW = 3  # of padding, in a masked case


class Problem:
    """The tensors of a case, drawn by its N, and its settings as the launchers take them."""

    def __init__(self, case: WiderCase, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        num_tokens, num_experts = case.num_tokens, case.num_experts
        generator = torch.Generator().manual_seed(num_experts)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self.logits, self.noise = (
            draw(num_tokens, num_experts).to(dtype),
            draw(num_tokens, num_experts) / 8,
        )
        self.bias = draw(num_experts) / 8 if case.biased else None
        self.mask = torch.arange(num_tokens) % 3 > 0 if case.masked else None
        self.choice = Choice(num_experts, case.top_k, **case.options)
        side = 3 if num_experts > 8 else 2
        self.topo = Topography(
            *default_map_shape(num_experts), side, 1, "torus", case.reduction, case.unit_energy
        )
        self.taps = gaussian_taps(side, 1.0)
        self.grads = [draw(num_tokens, case.top_k), draw(num_experts), torch.tensor(3.0)]
        if case.masked:
            self.logits[BAD_ROW], self.grads[0][BAD_ROW] = torch.nan, 1.0

    def by_kernels(self, kernels: Kernels) -> Outputs:
        """Return the outputs, with the gradient of the logits as "grad"."""
        settings: dict[str, Any] = {
            "taps": self.taps, "topo": self.topo, "renormalize": self.choice.renormalize,
            "wider": Wider(self.choice, self.bias, self.mask),
        }  # fmt: skip
        ours = kernels.route(
            self.logits, self.case.top_k, noise=self.noise, strict=self.case.masked, **settings
        )
        return ours | {"grad": kernels.route_backward(self.grads, self.logits, ours, **settings)}

    def by_reference(self) -> Outputs:
        """Return the same in float64."""
        x = self.logits.double()
        if self.case.masked:
            x[BAD_ROW] = 0
        x.requires_grad_()
        outputs = reference.route(
            x, self.noise, self.taps, self.topo, self.choice, self.bias, self.mask
        )
        names = ("weights", "experts", "importance", "group_loss", "load", "first_load")
        truth = dict(zip(names, outputs, strict=True))
        values = [truth[name] for name in ("weights", "importance", "group_loss")]
        (grad,) = torch.autograd.grad(values, x, [g.double() for g in self.grads])
        if self.case.masked:
            grad[BAD_ROW] = 0  # of a row that was routed as zeros
        return {name: value.detach() for name, value in truth.items()} | {"grad": grad}


def check_wider(
    kernels: Kernels, case: WiderCase, dtype: torch.dtype, schedules: Sequence[int]
) -> None:
    """Run the case under every schedule: equal bits, and as the reference has it.

    To 2e-5 of a value, or two roundings of ``dtype`` where the gradient is stored in it.
    """
    problem = Problem(case, dtype)
    results = []
    for schedule in schedules:
        kernels.schedule(schedule)
        results.append(problem.by_kernels(kernels))
    ours, truth = results[0], problem.by_reference()
    for other in results[1:]:
        for name, value in ours.items():
            assert torch.equal(value.nan_to_num(nan=-7), other[name].nan_to_num(nan=-7)), name
    if case.masked:
        assert ours["bad_rows"].tolist() == [-1, -1]
    for name in ("experts", "load", "first_load"):
        assert torch.equal(ours[name], truth[name]), name
    for name in ("weights", "importance", "group_loss", "grad"):
        stored = dtype if name == "grad" else torch.float32
        tolerance = max(2e-5, 2 * torch.finfo(stored).eps)
        torch.testing.assert_close(
            ours[name].double(), truth[name], rtol=tolerance, atol=tolerance / 4
        )


def check_unit_norm(
    kernels: Kernels, num_experts: int, reduction: str, dtype: torch.dtype, masked: bool
) -> None:
    """Group norms of unit energy, loss and gradient: of scores whose squares underflow, of 0 and of
    subnormal ones, which count as 0.

    The gradient of a row, relative to its largest entry: 1e-4, or two roundings of ``dtype``.
    """
    scores = torch.rand(19, num_experts, generator=torch.Generator().manual_seed(num_experts))
    scores[4] *= 1e-25 if dtype != torch.float16 else 1e-3
    scores[5] = 0
    scores = scores.to(dtype)
    scores[6] = torch.finfo(torch.float32).tiny / 2 if dtype != torch.float16 else 0  # as zeros
    mask = torch.arange(19) % 3 > 0 if masked else None
    if masked:
        scores[BAD_ROW] = torch.nan
    rows, cols = default_map_shape(num_experts)
    topo, taps = Topography(rows, cols, 3, 2, "torus", reduction, True), gaussian_taps(3, 1.0)
    wider = Wider(mask=mask)
    loss, bad = kernels.group_norm(scores, taps, topo, strict=True, wider=wider)
    grad = kernels.group_norm_backward(torch.tensor(2.0), scores, taps, topo, wider=wider)
    normal = scores.float().abs().amax(1, keepdim=True) >= torch.finfo(torch.float32).tiny
    z = torch.where(normal | scores.isnan(), scores.double(), 0).requires_grad_()
    truth = reference.group_norm(z, taps, topo, mask)
    (expected,) = torch.autograd.grad(truth, z, torch.tensor(2.0).double())
    assert bad is not None and bad.tolist() == [-1, -1]
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
    grad, expected, info = grad.double(), expected.nan_to_num(), torch.finfo(dtype)
    largest = expected.abs().amax(1, keepdim=True)
    subnormal = info.tiny * info.eps  # the step between such numbers: float16 gradients are small
    allowed = max(1e-4, 2 * info.eps) * expected.abs() + max(1e-5, info.eps) * largest + subnormal
    assert bool(((grad - expected).abs() <= allowed).all())
