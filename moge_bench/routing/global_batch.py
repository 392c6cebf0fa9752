"""The batch of all ranks: sums over processes that autograd follows.

A balance loss is no mean over tokens, so the mean of the ranks' losses is not that of their common
batch: what it sums over tokens must be summed over the ranks first. Legend: W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


def has_ranks() -> bool:
    """Whether this process is one of a group of torch.distributed."""
    return dist.is_available() and dist.is_initialized()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # Every rank has a loss of its own that this rank's values enter.
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_over_ranks(group: dist.ProcessGroup | None, *values: Any) -> list[Any]:
    """Return each of ``values`` summed over the ranks of ``group``; as they are where it is None.

    Values are tensors of any shapes and dtypes on one device, or ints, which become () int64. The
    sums are in float64, in one all-reduce, and are equal on all ranks. The gradient of a rank's
    values is the sum of all ranks' gradients: if every rank computes one loss from the sums, the
    mean of the ranks' gradients, which DDP and FSDP take, is the gradient of that loss.
    """
    if group is None:
        return list(values)
    device = next(value.device for value in values if isinstance(value, torch.Tensor))
    tensors = [torch.as_tensor(value, device=device) for value in values]
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
    sums = _Sum.apply(flat, group).split([tensor.numel() for tensor in tensors])
    return [s.view(t.shape).to(t.dtype) for s, t in zip(sums, tensors, strict=True)]


def mean_over_tokens(
    values: torch.Tensor, mask: torch.Tensor | None, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Return the mean of ``values``, (T, ...), over the tokens that count, of all ranks."""
    count: int | torch.Tensor = values.shape[0]
    if mask is not None:
        values = torch.where(mask.view(-1, *[1] * (values.dim() - 1)), values, 0)
        count = mask.sum()
    total, count = sum_over_ranks(group, values.sum(0), count)
    return total / at_least_one(count)


def at_least_one(count: int | torch.Tensor) -> int | torch.Tensor:
    """Return max(count, 1), for a mean over ``count`` tokens."""
    return count.clamp_min(1) if isinstance(count, torch.Tensor) else max(count, 1)
