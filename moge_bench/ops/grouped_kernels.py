"""Triton kernels of the experts' products where torch has none that never waits for the GPU.

Imported by ops/grouped_product.py when the first of them runs: Triton comes with every CUDA build
of torch, and with no other. The rows are sorted by expert, ``offsets`` (N + 1,) int64 on the device
says where each expert's begin, and the host knows neither: the grid is an upper bound, and a
program finds its expert by itself. Each output has one program, which adds in one order: the same
input gives the same bits. Sums are float32. Legend: R rows, N experts, I and O the inner and outer
size of a product, weight (N, O, I).
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def product_kernel(
    rows, weight, offsets, output, num_rows, num_experts, outer, inner,
    stride_expert, stride_outer, stride_inner, EXPERTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """output[p] = weight[e] rows[p], e the expert of row p; 0 in rows of none, which come last.

    A program has one tile of BLOCK_R rows of one expert and BLOCK_O columns. Expert e has the tiles
    from offsets[e] // BLOCK_R + e on. That is one more for each expert than whole tiles could need,
    so that its last one may be cut, and R // BLOCK_R + N + 1 are enough for all and for the rows of
    no expert. Some tiles have no row. EXPERTS is a power of 2 above N.
    """
    columns = tl.cdiv(outer, BLOCK_O)
    tile = tl.program_id(0) // columns
    index = tl.arange(0, EXPERTS)
    starts = tl.load(offsets + index, mask=index <= num_experts, other=0)
    is_before = (starts // BLOCK_R + index <= tile) & (index <= num_experts)
    expert = tl.sum(is_before.to(tl.int32), 0) - 1
    has_expert = expert < num_experts
    start = tl.load(offsets + expert)
    end = tl.load(offsets + expert + 1, mask=has_expert, other=num_rows)
    first = start + (tile - start // BLOCK_R - expert) * BLOCK_R

    row = first + tl.arange(0, BLOCK_R)
    column = (tl.program_id(0) % columns) * BLOCK_O + tl.arange(0, BLOCK_O)
    depth = tl.arange(0, BLOCK_I)
    is_row, is_column = row < end, column < outer
    a = rows + row[:, None] * inner + depth[None, :]
    b = weight + expert.to(tl.int64) * stride_expert
    b += column[None, :].to(tl.int64) * stride_outer + depth[:, None] * stride_inner
    total = tl.zeros((BLOCK_R, BLOCK_O), dtype=tl.float32)
    steps = tl.where(has_expert & (first < end), tl.cdiv(inner, BLOCK_I), 0)
    for step in range(0, steps):
        is_inner = depth < inner - step * BLOCK_I
        a_tile = tl.load(a, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        b_tile = tl.load(b, mask=is_inner[:, None] & is_column[None, :], other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision=PRECISION)
        a += BLOCK_I
        b += BLOCK_I * stride_inner
    to = output + row[:, None] * outer + column[None, :]
    tl.store(to, total.to(output.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def outer_kernel(
    grad, rows, offsets, output, outer, inner, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """output[e] = sum over the rows p of expert e of grad[p] rows[p]^T, (O, I); 0 without rows.

    A program has one tile of BLOCK_O x BLOCK_I of one expert, and goes through all of its rows.
    """
    columns, lines = tl.cdiv(inner, BLOCK_I), tl.cdiv(outer, BLOCK_O)
    tile = tl.program_id(0)
    expert = tile // (columns * lines)
    column = (tile % columns) * BLOCK_I + tl.arange(0, BLOCK_I)
    line = (tile // columns % lines) * BLOCK_O + tl.arange(0, BLOCK_O)
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    row = start + tl.arange(0, BLOCK_R)
    is_column, is_line = column < inner, line < outer
    a = grad + row[None, :] * outer + line[:, None]
    b = rows + row[:, None] * inner + column[None, :]
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for _ in range(0, tl.cdiv(end - start, BLOCK_R)):
        is_row = row < end
        a_tile = tl.load(a, mask=is_line[:, None] & is_row[None, :], other=0.0)
        b_tile = tl.load(b, mask=is_row[:, None] & is_column[None, :], other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision=PRECISION)
        row += BLOCK_R
        a += BLOCK_R * outer
        b += BLOCK_R * inner
    place = expert.to(tl.int64) * outer * inner
    to = output + place + line[:, None].to(tl.int64) * inner + column[None, :]
    tl.store(to, total.to(output.dtype.element_ty), mask=is_line[:, None] & is_column[None, :])
