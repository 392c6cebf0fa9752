"""Checks of the experts' kernels, on any build: sorted choices, rows that move, their biases.

A check raises AssertionError. Legend: T tokens, N experts, k chosen, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from tools.simt.kernels import Kernels

# In the order of launch.h's Activation.
ACTIVATIONS = (torch.nn.Identity(), functional.gelu, functional.relu, functional.silu)


def draw_choices(
    num_tokens: int, num_experts: int, top_k: int, dropped: float = 0.2
) -> torch.Tensor:
    """Return (T, k) int64 experts, all of a row different, a share ``dropped`` of them -1."""
    generator = torch.Generator().manual_seed(num_tokens * 31 + num_experts)
    order = torch.rand((num_tokens, num_experts), generator=generator).argsort(dim=1)[:, :top_k]
    lost = torch.rand(order.shape, generator=generator) < dropped
    return order.masked_fill(lost, -1).contiguous()


def sorted_by_torch(experts: torch.Tensor, num_experts: int) -> dict[str, torch.Tensor]:
    """Return offsets, slots and positions of (T, k) ``experts``, as launch.h defines them."""
    flat = experts.flatten()
    kept = ((flat >= 0) & (flat < num_experts)).nonzero().flatten()
    order = kept[flat[kept].argsort(stable=True)]
    slots = torch.full(flat.shape, -1, dtype=torch.int32)
    slots[: len(order)] = order.int()
    positions = torch.full(flat.shape, -1, dtype=torch.int32)
    positions[order] = torch.arange(len(order), dtype=torch.int32)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(flat[kept], minlength=num_experts).cumsum(0)
    return {"offsets": offsets, "slots": slots, "positions": positions.view(experts.shape)}


def check_sorted(
    kernels: Kernels,
    experts: torch.Tensor,
    num_experts: int,
    schedules: Sequence[int] = (0,),
    bad_row: int = -1,
) -> None:
    """The choices come out by expert, ties in their order; the first bad row is noted."""
    for schedule in schedules:
        kernels.schedule(schedule)
        ours = kernels.sort_choices(experts, num_experts, strict=True)
        for name, truth in sorted_by_torch(experts, num_experts).items():
            assert torch.equal(ours[name], truth), name
        assert ours["bad_row"].item() == bad_row


def check_rows(
    kernels: Kernels,
    schedules: Sequence[int],
    dtype: torch.dtype,
    num_tokens: int,
    hidden_size: int,
    num_experts: int,
    top_k: int,
    shift: int,
) -> None:
    """Rows gathered, combined and their weights' gradient against float64; schedules agree."""
    order = sorted_by_torch(draw_choices(num_tokens, num_experts, top_k), num_experts)
    slots, positions = order["slots"], order["positions"]
    generator = torch.Generator().manual_seed(num_tokens)
    source, grad, rows = (
        torch.randn((length, hidden_size), generator=generator).to(dtype)
        for length in (num_tokens, num_tokens, num_tokens * top_k)
    )
    weights = torch.rand((num_tokens, top_k), generator=generator)
    kept, of_choice = (slots >= 0)[:, None], slots.clamp(min=0).long()
    moved = torch.where(kept, source.double()[of_choice // top_k], 0.0)
    picked = rows.double().new_zeros((num_tokens, top_k, hidden_size))
    if len(rows):
        present = (positions >= 0)[..., None]
        picked = torch.where(present, rows.double()[positions.clamp(min=0).long()], 0.0)
    expected = {
        "gather": moved,
        "weighted": moved * weights.flatten()[of_choice].double()[:, None],
        "combine": (picked * weights.double()[..., None]).sum(1),
        "sum": picked.sum(1),
        "weight_grad": (picked * grad.double()[:, None]).sum(2),
    }
    seen: list[dict[str, torch.Tensor]] = []
    for schedule in schedules:
        kernels.schedule(schedule)
        ours = {
            "gather": kernels.gather_rows(source, None, slots, top_k, shift=shift),
            "weighted": kernels.gather_rows(source, weights, slots, top_k, shift=shift),
            "combine": kernels.combine_rows(rows, weights, positions, shift=shift),
            "sum": kernels.combine_rows(rows, None, positions, shift=shift),
            "weight_grad": kernels.combine_weight_grad(grad, rows, positions, shift=shift),
        }
        for name, truth in expected.items():
            rounding = torch.finfo(ours[name].dtype).eps / 2
            scale = truth.abs().max().item() if truth.numel() else 0.0
            torch.testing.assert_close(
                ours[name].double(), truth, rtol=rounding * 1.01 + 1e-6, atol=1e-6 * scale
            )
        seen.append(ours)
    for name, value in seen[0].items():
        assert all(torch.equal(value, other[name]) for other in seen), name


def check_biases(
    kernels: Kernels,
    schedules: Sequence[int],
    dtype: torch.dtype,
    counts: Sequence[int],
    size: int,
    dropped: int,
    activation: int,
    shift: int,
) -> None:
    """Rows with bias and activation, and both gradients, against float64; schedules agree.

    ``counts``: rows of each expert, after which come ``dropped`` ones that are NaN.
    """
    generator = torch.Generator().manual_seed(size)
    kept, n = sum(counts), len(counts)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rows, grad = (
        torch.randn((kept + dropped, size), generator=generator).to(dtype) for _ in range(2)
    )
    rows[kept:], grad[kept:] = torch.nan, torch.nan
    bias = torch.randn((n, size), generator=generator).to(dtype)
    of_row = torch.repeat_interleave(torch.arange(n), torch.tensor(counts))
    leaves = [rows[:kept].double().requires_grad_(), bias.double().requires_grad_()]
    output = ACTIVATIONS[activation](leaves[0] + leaves[1][of_row])
    grads = torch.autograd.grad(output, leaves, grad[:kept].double(), allow_unused=True)
    truth = {"output": output.detach(), "grad_rows": grads[0], "grad_bias": grads[1]}
    seen: list[dict[str, torch.Tensor]] = []
    for schedule in schedules:
        kernels.schedule(schedule)
        ours = {"output": kernels.bias_activation(rows, bias, offsets, activation, shift=shift)}
        grad_rows, ours["grad_bias"] = kernels.bias_activation_backward(
            grad, rows if activation else None, bias if activation else None, offsets, activation,
            shift=shift,
        )  # fmt: skip
        if grad_rows is not None:
            ours["grad_rows"] = grad_rows
        for name, value in ours.items():
            if name != "grad_bias":
                assert (value[kept:] == 0).all(), name
                value = value[:kept]
            # Each term is right to a few roundings of float32, of numbers up to 8 or so.
            rounding, scale = torch.finfo(dtype).eps / 2, 1 + max(counts, default=0) ** 0.5
            torch.testing.assert_close(
                value.double(), truth[name], rtol=rounding * 1.01 + 1e-6, atol=4e-6 * scale
            )
        idle = torch.tensor(counts) == 0
        assert (ours["grad_bias"][idle] == 0).all()
        seen.append(ours)
    for name, value in seen[0].items():
        assert all(torch.equal(value, other[name]) for other in seen), name
