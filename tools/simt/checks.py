"""Checks of the routing and group-norm kernels against the float64 reference, on any build of them.

The tests run them on the emulator and on interpreted PTX, every_check.py in a list with all others.
A check raises AssertionError. Legend: T tokens, N experts, k chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moge_bench.ops import reference
from moge_bench.ops.choice import Choice
from moge_bench.ops.topography import Topography, gaussian_taps
from tools.simt.cases import Case, by_reference, draw, upstream
from tools.simt.kernels import Kernels


def by_kernels(kernels: Kernels, case: Case) -> dict[str, torch.Tensor]:
    """Return what the kernels make of the case, as ``by_reference`` does."""
    logits, noise = draw(case)
    topo = case.topo
    taps = gaussian_taps(topo.group_size, case.sigma) if topo else None
    result = kernels.route(
        logits, case.top_k, taps=taps, topo=topo, renormalize=case.renormalize, noise=noise,
        strict=True, shift=case.shift,
    )  # fmt: skip
    grad = kernels.route_backward(
        upstream(case), logits, result, taps=taps, topo=topo, renormalize=case.renormalize,
        shift=case.shift,
    )  # fmt: skip
    return {**result, "grad_logits": grad}


def cancelling_term(case: Case) -> float:
    """Return the largest z dL_group/dz: softmax's backward subtracts sums of these.

    With h = 1 all of it cancels but for eps, so the gradient is no measure of its own rounding.
    """
    topo, grad_loss = case.topo, upstream(case)[2]
    if topo is None or grad_loss is None or case.num_tokens == 0:
        return 0.0
    scores = torch.softmax(draw(case)[0].double(), dim=1).requires_grad_()
    loss = reference.group_norm(scores, gaussian_taps(topo.group_size, case.sigma), topo)
    (slope,) = torch.autograd.grad(loss, scores, grad_loss.double())
    return (scores * slope).abs().max().item()


def assert_close(
    name: str, ours: torch.Tensor, truth: torch.Tensor, single: torch.Tensor, scale: float = 0.0
) -> None:
    """An error of at most twice PyTorch's own, or of a few roundings.

    Of the result: one, twice. In float32: 8 of the largest number (exp, sum, product, square, the
    filter's passes, root), here 1e-6 of it. PyTorch's own error can be almost 0 by chance.
    """
    if truth.numel() == 0:
        return
    largest = truth.abs().max().item()
    theirs = (single.double() - truth).abs().max().item()
    rounding = torch.finfo(single.dtype).eps / 2 * largest
    allowed = max(2 * theirs, 2 * rounding, 1e-6 * max(largest, scale))
    error = (ours.double() - truth).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def check_case(kernels: Kernels, case: Case, schedules: tuple[int, ...]) -> None:
    """Run the case under every schedule; the first against the reference, the rest bit for bit."""
    first: dict[str, torch.Tensor] = {}
    for schedule in schedules:
        kernels.schedule(schedule)
        ours = by_kernels(kernels, case)
        if first:
            for name, value in ours.items():
                assert torch.equal(value, first[name]), f"{name} differs under {schedule=}"
            continue
        first = ours
    truth, single = by_reference(case, torch.float64), by_reference(case, torch.float32)
    for name in ("experts", "load", "first_load"):
        assert torch.equal(first[name], truth[name]), name
    for name in ("weights", "importance", "group_loss"):
        assert_close(name, first[name], truth[name], single[name])
    grad, exact, torchs = (result["grad_logits"] for result in (first, truth, single))
    assert_close("grad_logits", grad, exact, torchs, scale=cancelling_term(case))
    logits = draw(case)[0].double()
    if case.num_tokens:
        peak = logits.amax(dim=1)
        sums = (logits - peak[:, None]).exp().sum(dim=1)
        torch.testing.assert_close(first["row_stats"][:, 0].double(), peak, rtol=0, atol=0)
        torch.testing.assert_close(first["row_stats"][:, 1].double(), 1 / sums, rtol=1e-6, atol=0)
    assert first["bad_rows"].tolist() == [-1, -1]


def check_not_finite(
    kernels: Kernels,
    logits: torch.Tensor,
    top_k: int,
    bad_rows: list[int],
    noise: torch.Tensor | None = None,
    renormalize: bool = True,
) -> None:
    """Rows that are not finite make NaN weights and are noted, as in the reference.

    ``bad_rows``: the first row with a logit, and the first with a noise, that is NaN or +inf; -1
    for none.
    """
    ours = kernels.route(logits, top_k, renormalize=renormalize, noise=noise, strict=True)
    truth = reference.route(
        logits.double(), noise, None, None, Choice(logits.shape[1], top_k, renormalize)
    )
    assert torch.equal(ours["experts"], truth[1])
    torch.testing.assert_close(
        ours["weights"].double(), truth[0], rtol=1e-5, atol=1e-7, equal_nan=True
    )
    assert ours["importance"].isnan().all()
    assert ours["bad_rows"].tolist() == bad_rows


def check_rows_apart(kernels: Kernels, case: Case) -> None:
    """Gradients of rows that are not finite are NaN; the other rows' have the bits they had."""
    logits, _ = draw(case)
    bad = torch.zeros(case.num_tokens, dtype=torch.bool)
    bad[[1, 4]] = True
    spoilt = logits.clone()
    spoilt[1, 2], spoilt[4, case.num_experts - 1] = torch.nan, torch.inf
    assert case.topo is not None and not case.noisy
    taps = gaussian_taps(case.topo.group_size, case.sigma)
    grads = []
    for rows in (logits, spoilt):
        routed = kernels.route(
            rows, case.top_k, taps=taps, topo=case.topo, renormalize=case.renormalize
        )
        grads.append(kernels.route_backward(
            upstream(case), rows, routed, taps=taps, topo=case.topo, renormalize=case.renormalize
        ))  # fmt: skip
    assert torch.equal(grads[0][~bad], grads[1][~bad])
    assert grads[0].isfinite().all() and grads[1][bad].isnan().all()


def check_group_norm(
    builds: Sequence[tuple[Kernels, int]], dtype: torch.dtype, num_experts: int, border: str
) -> None:
    """Loss and gradient of drawn scores, by every build under its schedule: equal to the bit."""
    generator = torch.Generator().manual_seed(num_experts)
    scores = torch.randn((9, num_experts), generator=generator).to(dtype)
    rows = 1 if num_experts in (1, 33) else 4
    topo = Topography(rows, num_experts // rows, min(rows, 3), 2, border, "official_image")
    taps = gaussian_taps(topo.group_size, 1.0)
    oracle = scores.double().requires_grad_()
    loss = reference.group_norm(oracle, taps, topo)
    grad_loss = torch.tensor(1.5)
    loss.backward(grad_loss.double())
    assert oracle.grad is not None
    info = torch.finfo(dtype)
    atol = 1e-6 * oracle.grad.abs().max().item() + info.tiny * info.eps  # of subnormal numbers
    seen = []
    for kernels, schedule in builds:
        kernels.schedule(schedule)
        ours, bad = kernels.group_norm(scores, taps, topo, strict=True, shift=schedule % 2)
        grad = kernels.group_norm_backward(grad_loss, scores, taps, topo, shift=schedule % 2)
        assert bad is not None and bad[0].item() == -1
        torch.testing.assert_close(ours.double(), loss.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.double(), oracle.grad, rtol=info.eps + 2e-6, atol=atol)
        seen.append((ours, grad))
    assert all(torch.equal(a, seen[0][0]) and torch.equal(b, seen[0][1]) for a, b in seen)
