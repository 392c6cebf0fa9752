"""moge::grouped_product and moge::grouped_outer: the experts' products, which nothing waits for.

Ops, fake kernels and derivatives; the kernels are Triton's, in ops/grouped_kernels.py. On CUDA
alone: the CPU's experts are one op, moge::expert_ffn. Legend: R rows, sorted by expert, those of no
expert last; N experts; I and O the inner and outer size of a product.
"""

from __future__ import annotations

import contextlib
import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch._C._functorch import is_gradtrackingtensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("moge", "FRAGMENT")
for _schema in (
    "grouped_product(Tensor rows, Tensor weight, Tensor offsets) -> Tensor",
    "grouped_outer(Tensor grad, Tensor rows, Tensor offsets) -> Tensor",
):
    LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)
OPS = torch.ops.moge

LEAST_CAPABILITY = (8, 0)  # what Triton compiles for


class Tile(NamedTuple):
    """What one program computes at a time: rows, outer and inner size; its warps and stages."""

    rows: int
    outer: int
    inner: int
    warps: int = 4
    stages: int = 3


# By bytes of an element. Chosen by the instructions that Triton 3.7.1 compiles them to for sm_80,
# sm_90 and sm_100, on the first two 82 to 84 % of float32's inner loop multiply and nothing spills;
# the probe products_of_the_experts of tools/gpu_run times them and others.
PRODUCT_TILES = {4: Tile(64, 64, 16), 2: Tile(64, 128, 64)}
OUTER_TILES = {4: Tile(32, 64, 64), 2: Tile(64, 64, 128)}


@functools.cache
def kernels() -> tuple[ModuleType | None, str]:
    """Return (the Triton kernels or None, why they could not be imported)."""
    try:
        from moge_bench.ops import grouped_kernels
    except ImportError as error:
        return None, f"Triton cannot be imported ({error})"
    return grouped_kernels, ""


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability; (0, 0) where there is no GPU, as for fake tensors.

    (10, 0) for the CPU, where tests run what a GPU runs.
    """
    if device.type != "cuda":
        return 10, 0
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (0, 0)


def why_not(device: torch.device) -> str | None:
    """Return why the ops have no kernel for ``device``, or None if they have."""
    if device.type != "cuda":
        registered = torch._C._dispatch_has_kernel_for_dispatch_key
        if registered("moge::grouped_product", device.type.upper()):
            return None
        return f"moge::grouped_product has a kernel for CUDA alone, got {device}"
    if capability(device) < LEAST_CAPABILITY:
        major, minor = capability(device)
        return f"Triton's kernels need compute capability 8.0, got {major}.{minor}"
    module, problem = kernels()
    return None if module is not None else problem


def grouped_product(
    rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Return weight[e] rows[p], e the expert of row p, (R, O); 0 in the rows of no expert.

    Args:
        rows: (R, I), float32, float16 or bfloat16.
        weight: (N, O, I) in the dtype of ``rows``, of any strides.
        offsets: (N + 1,) int64: the rows of expert e are offsets[e] to offsets[e + 1] - 1.

    Sums are float32, in the order of I, so the same input gives the same bits. float32 is rounded
    to TF32 where torch's own products are: torch.backends.cuda.matmul. Errors: ValueError for
    shapes and dtypes that do not agree.
    """
    _check("weight", weight, 3, rows)
    num_rows, inner = rows.shape
    num_experts, outer, _ = weight.shape
    _require(weight.shape[2] == inner, f"weight must have shape (N, O, {inner})", weight)
    _require_offsets(offsets, num_experts)
    rows = rows.contiguous()
    output = rows.new_empty((num_rows, outer))
    tile = PRODUCT_TILES[rows.element_size()]
    programs = (num_rows // tile.rows + num_experts + 1) * _cdiv(outer, tile.outer)
    with _on(rows.device):
        _kernel("product_kernel")[(programs,)](
            rows, weight, offsets, output, num_rows, num_experts, outer, inner, *weight.stride(),
            EXPERTS=1 << num_experts.bit_length(), **settings(tile),
        )  # fmt: skip
    return output


def grouped_outer(grad: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return the sums of grad[p] rows[p]^T over the rows of each expert, (N, O, I); 0 of none.

    It is the gradient of ``grouped_product`` for ``weight``; ``grad`` (R, O), ``rows`` (R, I) and
    ``offsets`` as there.
    """
    _check("grad", grad, 2, rows)
    num_rows, inner = rows.shape
    _require(grad.shape[0] == num_rows, f"grad must have shape ({num_rows}, O)", grad)
    num_experts, outer = offsets.shape[0] - 1, grad.shape[1]
    _require_offsets(offsets, num_experts)
    grad, rows = grad.contiguous(), rows.contiguous()
    output = rows.new_empty((num_experts, outer, inner))
    tile = OUTER_TILES[rows.element_size()]
    programs = num_experts * _cdiv(outer, tile.outer) * _cdiv(inner, tile.inner)
    with _on(rows.device):
        _kernel("outer_kernel")[(programs,)](
            grad, rows, offsets, output, outer, inner, **settings(tile)
        )
    return output


def _kernel(name: str) -> Any:
    module, problem = kernels()
    if module is None:
        raise RuntimeError(f"moge::grouped_product: {problem}; install triton")
    return getattr(module, name)


def _on(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def settings(tile: Tile) -> dict[str, Any]:
    """Return what a kernel is compiled with."""
    rounded = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {
        "PRECISION": "tf32" if rounded else "ieee",
        "BLOCK_R": tile.rows, "BLOCK_O": tile.outer, "BLOCK_I": tile.inner,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def _cdiv(size: int, block: int) -> int:
    return -(-size // block)


def _check(name: str, tensor: torch.Tensor, dim: int, rows: torch.Tensor) -> None:
    """Check what memory depends on, as the compiled ops do."""
    _require(rows.dim() == 2, "rows must have two dimensions", rows)
    _require(rows.element_size() in PRODUCT_TILES, "rows must be float32 or of 16 bits", rows)
    _require(tensor.dim() == dim, f"{name} must have {dim} dimensions", tensor)
    wanted = f"{name} must be {rows.dtype} on {rows.device}, as rows"
    _require(tensor.dtype == rows.dtype and tensor.device == rows.device, wanted, tensor)


def _require_offsets(offsets: torch.Tensor, num_experts: int) -> None:
    fits = offsets.dtype == torch.int64 and offsets.shape == (num_experts + 1,)
    _require(fits and num_experts > 0, "offsets must be int64 of shape (N + 1,), N >= 1", offsets)


def _require(condition: bool, wanted: str, got: torch.Tensor) -> None:
    if not condition:
        raise ValueError(f"{wanted}, got {tuple(got.shape)} {got.dtype} on {got.device}")


def _product_fake(rows: torch.Tensor, weight: torch.Tensor, offsets: Any) -> torch.Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[1]))


def _outer_fake(grad: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return rows.new_empty((offsets.shape[0] - 1, grad.shape[1], rows.shape[1]))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*inputs)
        return _below_autograd("grouped_product", *inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, offsets = ctx.saved_tensors
        return (
            _turned(grad, weight, offsets) if ctx.needs_input_grad[0] else None,
            OPS.grouped_outer(grad, rows, offsets) if ctx.needs_input_grad[1] else None,
            None,
        )


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*inputs)
        return _below_autograd("grouped_outer", *inputs)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, rows, offsets = ctx.saved_tensors
        return (
            OPS.grouped_product(rows, upstream, offsets) if ctx.needs_input_grad[0] else None,
            _turned(grad, upstream, offsets) if ctx.needs_input_grad[1] else None,
            None,
        )


def _turned(grad: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return OPS.grouped_product(grad, weight.transpose(1, 2), offsets)


def _below_autograd(name: str, *inputs: torch.Tensor) -> torch.Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(OPS, name)(*inputs)


def _call(name: str, function: Any, *inputs: torch.Tensor) -> torch.Tensor:
    """Call the op, differentiably where it is to be; as csrc/autograd.cpp refuses, so does it."""
    differentiated = [torch.is_grad_enabled() and tensor.requires_grad for tensor in inputs]
    for tensor, by_it in zip(inputs, differentiated, strict=True):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"moge::{name} has no forward-mode derivative (torch.func.jvp, jacfwd; "
                "torch.autograd.forward_ad); backend='reference' has it"
            )
        if by_it and is_gradtrackingtensor(tensor):
            raise NotImplementedError(
                f"moge::{name} has no derivative under torch.func (grad, vjp, jacrev): take it by "
                ".backward() or torch.autograd.grad, or pass backend='reference', which has it"
            )
    return function.apply(*inputs) if any(differentiated) else _below_autograd(name, *inputs)


for _name, _run, _fake, _function in (
    ("grouped_product", grouped_product, _product_fake, _Product),
    ("grouped_outer", grouped_outer, _outer_fake, _Outer),
):
    LIBRARY.impl(_name, _run, "CUDA")
    # Not torch.library.register_autograd, whose rules lose a tangent without a word.
    LIBRARY.impl(_name, functools.partial(_call, _name, _function), "Autograd")
    torch.library.register_fake(f"moge::{_name}", _fake, lib=LIBRARY)
