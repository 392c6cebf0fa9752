"""The expert FFN of CUDA tensors: dispatch kernel, torch's matrix products, combine kernel.

Fake kernels of moge::dispatch and moge::combine, and what is built of them. Schemas are in
csrc/registration.cpp, autograd in csrc/autograd_experts.cpp, kernels in csrc/cuda; the truth it is
tested against is ops/reference_experts.py. Legend: T tokens, k choices of a token, N experts, d
hidden size, f hidden size of an expert, R = T * k rows, sorted by expert; the rows of dropped
choices come last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from moge_bench.ops import extension
from moge_bench.ops.reference_experts import ACTIVATIONS, masked_linear
from moge_bench.ops.validation import readable


def expert_ffn(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    w_in: torch.Tensor,
    b_in: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """Return y of ``moge_bench.ops.expert_ffn``, (T, d), for float32, float16 or bfloat16 ``x``.

    Where d and f fill a multiple of 16 bytes it is two ``torch.nn.functional.grouped_mm``; torch
    has a kernel of that for bfloat16 on compute capability 9 and 10, where nothing waits for the
    device, and elsewhere reads the group sizes back and loops inside. Other sizes, which grouped_mm
    refuses, are one product an expert, after one wait for their sizes. An ``experts`` entry out of
    range fails as a device-side assertion, which costs no wait either.
    """
    num_experts, ffn_size, hidden_size = w_in.shape
    torch._assert_async(
        ((experts >= -1) & (experts < num_experts)).all(),
        f"experts must hold -1 (dropped) or indices from 0 to {num_experts - 1}",
    )
    rows_RD, offsets, slots, positions = torch.ops.moge.dispatch(x, experts, num_experts)
    item = x.element_size()
    grouped = hidden_size * item % 16 == 0 and ffn_size * item % 16 == 0
    linear = _GroupedLinear(offsets) if grouped else _LinearPerExpert(offsets)
    hidden_RF = ACTIVATIONS[activation](linear(rows_RD, w_in, b_in))
    return torch.ops.moge.combine(linear(hidden_RF, w_out, b_out), weights, slots, positions)


class _GroupedLinear:
    """rows[p] @ weight[e].T + bias[e], e the expert of row p, as one grouped product.

    What it makes of the rows of dropped choices is undefined, and nothing reads it.
    """

    def __init__(self, offsets: torch.Tensor) -> None:
        self.ends = offsets[1:].to(torch.int32)

    def __call__(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        outputs = functional.grouped_mm(rows, weight.transpose(-2, -1), offs=self.ends)
        if bias is None:
            return outputs
        # Dropped rows get a bias of their own, so that their gradient reaches no expert's.
        padded = torch.cat([bias, bias.new_zeros(1, bias.shape[1])])
        index = torch.arange(len(rows), device=rows.device, dtype=torch.int32)
        return outputs + padded[torch.searchsorted(self.ends, index, right=True)]


class _LinearPerExpert:
    """The same, one product an expert; 0 in the rows of dropped choices.

    Where the sizes cannot be read (fake tensors, export) every expert sees every row.
    """

    def __init__(self, offsets: torch.Tensor) -> None:
        self.offsets = offsets
        self.sizes = offsets.diff().tolist() if readable(offsets) else None

    def __call__(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        no_bias: tuple[None, ...] = (None,) * len(weight)
        biases = no_bias if bias is None else bias.unbind()
        if self.sizes is None:
            index = torch.arange(len(rows), device=rows.device)
            expert = torch.searchsorted(self.offsets[1:], index, right=True)
            return masked_linear(rows, expert, weight.unbind(), biases)
        kept = sum(self.sizes)
        outputs = [
            functional.linear(part, w, b)
            for part, w, b in zip(
                rows[:kept].split(self.sizes), weight.unbind(), biases, strict=True
            )
        ]
        return torch.cat([*outputs, rows.new_zeros(len(rows) - kept, weight.shape[1])])


def _dispatch_fake(
    x: torch.Tensor, experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, ...]:
    num_rows = experts.shape[0] * experts.shape[1]
    return (
        x.new_empty((num_rows, x.shape[1])),
        x.new_empty((num_experts + 1,), dtype=torch.int64),
        x.new_empty((num_rows,), dtype=torch.int32),
        x.new_empty(experts.shape, dtype=torch.int32),
    )


def _combine_fake(
    rows: torch.Tensor, weights: Any, slots: Any, positions: torch.Tensor
) -> torch.Tensor:
    return rows.new_empty((positions.shape[0], rows.shape[1]))


def _combine_backward_fake(
    grad_y: Any, rows: torch.Tensor, weights: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.new_empty(rows.shape), weights.new_empty(weights.shape)


if extension.load()[0] is not None:
    torch.library.register_fake("moge::dispatch", _dispatch_fake)
    torch.library.register_fake("moge::combine", _combine_fake)
    torch.library.register_fake("moge::combine_backward", _combine_backward_fake)
