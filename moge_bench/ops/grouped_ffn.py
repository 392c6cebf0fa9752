"""The expert FFN of CUDA tensors: dispatch kernel, grouped matrix products, combine kernel.

Fake kernels of moge::dispatch, moge::bias_activation and moge::combine, and what is built of them.
Schemas are in csrc/registration.cpp, autograd in csrc/autograd_experts.cpp, kernels in csrc/cuda;
the truth it is tested against is ops/reference_experts.py. Legend: T tokens, k choices of a token,
N experts, d hidden size, f hidden size of an expert, R = T * k rows, sorted by expert; the rows of
dropped choices come last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from moge_bench.ops import extension, grouped_product
from moge_bench.ops.grouped_product import capability
from moge_bench.ops.reference_experts import ACTIVATIONS, masked_linear
from moge_bench.ops.validation import is_capturing, readable

_Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_GROUPED_MM_EXPERTS = 1024  # torch's kernels take fewer

# As the kernels number them: csrc/cuda/launch.h.
ACTIVATION_CODES = {"none": 0, "gelu": 1, "relu": 2, "silu": 3}


def expert_ffn(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    w_in: torch.Tensor,
    b_in: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    activation: str,
    check_experts: bool = True,
) -> torch.Tensor:
    """Return y of ``moge_bench.ops.expert_ffn``, (T, d), for float32, float16 or bfloat16 ``x``.

    How the two products and their gradients are computed is decided in ``_choose_product``. With
    the first two of its ways nothing waits for the device; the last waits once, for the experts'
    numbers of rows, which both products and their gradients share. Bias and activation are one
    kernel, and the gradient of a bias one sum over the rows of its expert.

    ``check_experts`` reads whether an ``experts`` entry is out of range, another wait, and raises
    ValueError that names its row. Without it, and where values cannot be read, such a choice counts
    as dropped.
    """
    num_experts = w_in.shape[0]
    if b_in is not None and activation not in ACTIVATION_CODES:
        raise ValueError(
            f"activation={activation!r} is not one of the CUDA kernel that adds the bias too, "
            f"{tuple(ACTIVATION_CODES)[1:]}: give it a code there (csrc/cuda/launch.h), or take "
            "experts without bias or backend='reference'"
        )
    rows_RD, offsets, slots, positions, bad_row = torch.ops.moge.dispatch(x, experts, num_experts)
    if check_experts and readable(bad_row):
        _refuse_bad(bad_row, experts, num_experts)
    product = _choose_product(x, w_in)(offsets)
    hidden_RF = product(rows_RD, w_in)
    if b_in is None:
        hidden_RF = ACTIVATIONS[activation](hidden_RF)
    else:
        code = ACTIVATION_CODES[activation]
        hidden_RF = torch.ops.moge.bias_activation(hidden_RF, b_in, offsets, code)
    outputs_RD = product(hidden_RF, w_out)
    if b_out is not None:
        outputs_RD = torch.ops.moge.bias_activation(
            outputs_RD, b_out, offsets, ACTIVATION_CODES["none"]
        )
    return torch.ops.moge.combine(outputs_RD, weights, slots, positions)


def _refuse_bad(bad_row: torch.Tensor, experts: torch.Tensor, num_experts: int) -> None:
    """Raise ValueError if there is a row of ``experts`` with an index that no expert has."""
    if experts.is_cuda and is_capturing():
        raise ValueError(
            "check_experts=True waits for the GPU, which a stream that is being captured into a "
            "CUDA graph cannot do; pass check_experts=False"
        )
    row = int(bad_row)
    if row >= 0:
        raise ValueError(
            f"experts must hold -1 (dropped) or indices from 0 to {num_experts - 1}, got "
            f"{experts[row].tolist()} in row {row} (rows counted from 0)"
        )


def _choose_product(x: torch.Tensor, w_in: torch.Tensor) -> Callable[[torch.Tensor], _Product]:
    """Return how the products are computed: the first of these that can be.

    1. torch's ``grouped_mm`` where torch has a kernel of it: bfloat16 on compute capability 9 and
       10, d and f multiples of 8, fewer than 1,024 experts. Nothing waits, and it is what was
       measured on a GPU.
    2. moge::grouped_product, Triton's, on every other GPU that Triton compiles for. Nothing waits.
    3. Without Triton one product an expert, which waits and breaks a graph of torch.compile; but
       for bfloat16 where a graph is made, ``grouped_mm``, whose own fallback reads the sizes when
       the graph runs. For other dtypes torch up to 2.13 refuses to trace it.
    """
    fits = not any(size * x.element_size() % 16 for size in w_in.shape[1:])
    fits = fits and len(w_in) < _GROUPED_MM_EXPERTS
    has_grouped_mm, why_not_triton = _wait_free_products(x.device, x.dtype)
    if fits and has_grouped_mm:
        return _GroupedMM
    if why_not_triton is None:
        return _TritonProduct
    traced = torch.compiler.is_compiling() or not readable(x)
    if fits and traced and x.dtype == torch.bfloat16:
        return _GroupedMM
    if x.is_cuda and not traced:
        extension.warn_once(f"expert_ffn waits for the GPU once a call: {why_not_triton}")
    return _ProductPerExpert


def _wait_free_products(device: torch.device, dtype: torch.dtype) -> tuple[bool, str | None]:
    """Return whether torch has a grouped product that never waits, and why Triton has none."""
    has_kernel = dtype == torch.bfloat16 and capability(device)[0] in (9, 10)
    return has_kernel, grouped_product.why_not(device)


# As torch.compiler.assume_constant_result would say it, without its import of torch._dynamo.
_wait_free_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _GroupedMM:
    """weight[e] rows[p], e the expert of row p, as one ``grouped_mm``.

    What it makes of the rows of dropped choices is undefined, and nothing reads it.
    """

    def __init__(self, offsets: torch.Tensor) -> None:
        self.offsets = offsets
        self.ends = offsets[1:].to(torch.int32)

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        traced = torch.compiler.is_compiling()
        if not traced and weight.storage_offset() * weight.element_size() % 16:
            weight = weight.clone()  # it wants whole 16 bytes
        if traced or capability(rows.device)[0] == 10:
            weight = _IdleGradient.apply(weight, self.offsets)
        return functional.grouped_mm(rows, weight.transpose(-2, -1), offs=self.ends)


class _IdleGradient(torch.autograd.Function):
    """``weight``; its gradient is set to 0 where an expert had no rows.

    grouped_mm is reported to leave it unwritten there on compute capability 10. It is one more pass
    over the gradient, so that 9, where it is written, does without.
    """

    @staticmethod
    def forward(weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return torch.where((offsets.diff() > 0)[:, None, None], grad, 0), None


class _TritonProduct:
    """The same, one kernel of ops/grouped_kernels.py; 0 in the rows of dropped choices."""

    def __init__(self, offsets: torch.Tensor) -> None:
        self.offsets = offsets

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.moge.grouped_product(rows, weight, self.offsets)


class _ProductPerExpert:
    """The same, one product an expert; 0 in the rows of dropped choices.

    Where the sizes cannot be read (fake tensors, export) every expert sees every row.
    """

    def __init__(self, offsets: torch.Tensor) -> None:
        if offsets.is_cuda and is_capturing():
            raise ValueError(
                "expert_ffn reads its experts' numbers of rows back, which a stream that is being "
                "captured into a CUDA graph cannot do; it would not with Triton: pip install triton"
            )
        self.offsets = offsets
        self.sizes = offsets.diff().tolist() if readable(offsets) else None

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.sizes is None:
            index = torch.arange(len(rows), device=rows.device)
            expert = torch.searchsorted(self.offsets[1:], index, right=True)
            return masked_linear(rows, expert, weight.unbind(), (None,) * len(weight))
        kept = sum(self.sizes)
        parts = zip(rows[:kept].split(self.sizes), weight.unbind(), strict=True)
        outputs = [functional.linear(part, w) for part, w in parts]
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
        x.new_empty((), dtype=torch.int64),
    )


def _combine_fake(
    rows: torch.Tensor, weights: Any, slots: Any, positions: torch.Tensor
) -> torch.Tensor:
    return rows.new_empty((positions.shape[0], rows.shape[1]))


def _combine_backward_fake(
    grad_y: Any, rows: torch.Tensor, weights: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.new_empty(rows.shape), weights.new_empty(weights.shape)


def _bias_fake(rows: torch.Tensor, *_: Any) -> torch.Tensor:
    return rows.new_empty(rows.shape)


def _bias_backward_fake(
    grad_output: torch.Tensor, rows: Any, bias: Any, offsets: torch.Tensor, activation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, size = grad_output.shape
    return (
        grad_output.new_empty((num_rows if activation else 0, size)),
        grad_output.new_empty((offsets.shape[0] - 1, size)),
    )


if extension.load()[0] is not None:
    torch.library.register_fake("moge::dispatch", _dispatch_fake)
    torch.library.register_fake("moge::bias_activation", _bias_fake)
    torch.library.register_fake("moge::bias_activation_backward", _bias_backward_fake)
    torch.library.register_fake("moge::combine", _combine_fake)
    torch.library.register_fake("moge::combine_backward", _combine_backward_fake)
