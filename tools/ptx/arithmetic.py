"""Arithmetic, comparison and selection of integers and floats.

Approximate functions (ex2, lg2, rcp.approx and others) are computed correctly rounded; hardware
may differ from that in its last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np

from tools.ptx.decode import Execute, Form, Lanes, Read, opcode
from tools.ptx.findings import DIVISION_BY_ZERO, KernelFault
from tools.ptx.scalars import (
    DTYPES,
    PAIRS,
    TWO_FLOATS,
    WIDER,
    Array,
    add32_to_zero,
    flush,
    fma16,
    fma32,
    fma32_down,
    fma64,
    saturate,
    unsigned,
)

_INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
_FLOATS = ("f32", "f64")


def pure(form: Form, function: Callable[..., Array], reads: list[Read], kind: str) -> Execute:
    """Return an instruction that writes ``function`` of what ``reads`` read to operand 0."""
    write = form.writer(form.operands[0], kind)

    def execute(state: Any, lanes: Lanes) -> None:
        write(state, lanes, function(*(read(state, lanes) for read in reads)))

    return execute


def _floating(form: Form, function: Callable[..., Array], count: int) -> Execute:
    """An instruction on floats: ``count`` inputs, .ftz on inputs and result, .sat on the result."""
    kind = form.type(*_FLOATS, TWO_FLOATS)
    form.count(count + 1)
    ftz, saturated = form.flag("ftz"), form.flag("sat")
    if (ftz and kind == "f64") or (saturated and kind != "f32"):
        raise form.unsupported(f".ftz or .sat on {kind}")

    def rounded(*values: Array) -> Array:
        result = function(*(map(flush, values) if ftz else values))
        if saturated:
            result = saturate(result)
        return flush(result) if ftz else result

    if kind == TWO_FLOATS:
        return pure(form, partial(_of_halves, rounded), form.readers(1, "b64"), "b64")
    return pure(form, rounded, form.readers(1, kind), kind)


def _of_halves(function: Callable[..., Array], *words: Array) -> Array:
    """``function`` of the float32 that 64-bit words hold, the lower half first."""
    halves = [np.ascontiguousarray(word).view(np.float32) for word in np.broadcast_arrays(*words)]
    return function(*halves).view(np.uint64)


@opcode("add", "sub", "mul")
def _add_sub_mul(form: Form) -> Execute:
    ufunc = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[form.name]
    kind = form.type(*_INTEGERS, *_FLOATS, TWO_FLOATS)
    if kind == "f32" and form.name == "add" and form.one_of("rn", "rz", default="rn") == "rz":
        return _floating(form, add32_to_zero, 2)
    if kind in (*_FLOATS, TWO_FLOATS):
        form.flag("rn")
        return _floating(form, ufunc, 2)
    if form.name == "mul":
        return _integer_product(form)
    form.count(3)
    return pure(form, ufunc, form.readers(1, kind), kind)


@opcode("mad", "fma")
def _multiply_add(form: Form) -> Execute:
    pairs = (*PAIRS, TWO_FLOATS) if form.name == "fma" else ()
    kind = form.type(*_INTEGERS, *_FLOATS, *pairs)
    if kind in _INTEGERS and form.name == "mad":
        return _integer_product(form)
    if kind in PAIRS:
        form.one_of("rn")
        form.count(4)
        return pure(form, partial(_fma_pairs, PAIRS[kind]), form.readers(1, "b32"), "b32")
    if kind == "f32" and form.one_of("rn", "rm") == "rm":
        return _floating(form, fma32_down, 3)
    if kind in ("f64", TWO_FLOATS):
        form.one_of("rn")
    return _floating(form, fma64 if kind == "f64" else fma32, 3)


def _fma_pairs(kind: str, *operands: Array) -> Array:
    """fma of both halves of three words."""
    lower = fma16(kind, *(word.astype(np.uint16) for word in operands))
    upper = fma16(kind, *((word >> np.uint32(16)).astype(np.uint16) for word in operands))
    return upper.astype(np.uint32) << np.uint32(16) | lower


def _integer_product(form: Form) -> Execute:
    """mul and mad with .lo, .hi or .wide."""
    kind, part = form.type(), form.one_of("lo", "hi", "wide")
    form.count(4 if form.name == "mad" else 3)
    result = kind if part != "wide" else WIDER.get(kind)
    if result is None:
        raise form.unsupported(f"mul.wide of {kind}")
    wide = DTYPES[result]

    def product(a: Array, b: Array, *addend: Array) -> Array:
        if part == "lo":
            value = a * b
        elif part == "wide":
            value = a.astype(wide) * b.astype(wide)
        else:
            value = _high_product(a, b)
        return value + addend[0] if addend else value

    reads = [form.reader(operand, kind) for operand in form.operands[1:3]]
    reads += [form.reader(operand, result) for operand in form.operands[3:]]
    return pure(form, product, reads, result)


def _high_product(a: Array, b: Array) -> Array:
    """The upper half of a double-width product; 64-bit lanes are Python integers."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}8")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    exact = (a.astype(object) * b.astype(object)) >> bits
    return exact.astype(a.dtype)


@opcode("div", "rem")
def _divide(form: Form) -> Execute:
    kind = form.type(*_INTEGERS, *_FLOATS)
    if kind in _FLOATS:
        if form.name == "rem":
            raise form.unsupported("rem of floats")
        form.one_of("rn", "full", "approx")
        return _floating(form, np.divide, 2)
    form.count(3)
    where, remainder = form.instruction.where, form.name == "rem"

    def divide(a: Array, b: Array) -> Array:
        if (b == 0).any():
            raise KernelFault(DIVISION_BY_ZERO, where)
        size_a, size_b = _magnitude(a), _magnitude(b)
        if remainder:  # takes the sign of the dividend
            return _with_sign(size_a % size_b, a < 0, a.dtype)
        return _with_sign(size_a // size_b, (a < 0) != (b < 0), a.dtype)

    return pure(form, divide, form.readers(1, kind), kind)


def _magnitude(values: Array) -> Array:
    bits = values.view(unsigned(values.dtype))
    return np.where(values < 0, np.negative(bits), bits)


def _with_sign(size: Array, negative: Array, dtype: np.dtype[Any]) -> Array:
    return np.where(negative, np.negative(size), size).view(dtype)


@opcode("min", "max")
def _extreme(form: Form) -> Execute:
    kind = form.type(*_INTEGERS, *_FLOATS)
    greater = form.name == "max"
    if kind in _INTEGERS:
        form.count(3)
        return pure(form, np.maximum if greater else np.minimum, form.readers(1, kind), kind)
    # Of a NaN and a number the number wins, unless .NaN asks for the NaN.
    names = ("minimum", "maximum") if form.flag("NaN") else ("fmin", "fmax")
    ufunc = getattr(np, names[greater])
    return _floating(form, lambda *values: reduce(ufunc, values), form.count(3, 4) - 1)


@opcode("neg", "abs")
def _sign(form: Form) -> Execute:
    kind = form.type("s16", "s32", "s64", *_FLOATS)
    ufunc = np.negative if form.name == "neg" else np.abs
    if kind in _FLOATS:
        return _floating(form, ufunc, 1)
    form.count(2)
    return pure(form, ufunc, form.readers(1, kind), kind)


@opcode("copysign")
def _copysign(form: Form) -> Execute:
    kind = form.type(*_FLOATS)
    form.count(3)
    return pure(form, lambda sign, size: np.copysign(size, sign), form.readers(1, kind), kind)


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}


@opcode(*_FUNCTIONS)
def _function(form: Form) -> Execute:
    exact = form.name in ("sqrt", "rcp")
    form.one_of(*(("rn", "approx") if exact else ("approx",)))
    function = _FUNCTIONS[form.name]
    if form.type(*_FLOATS) == "f64":
        if not exact and form.name != "rsqrt":
            raise form.unsupported(f"{form.name} of f64")
        return _floating(form, function, 1)
    return _floating(form, lambda a: function(a.astype(np.float64)).astype(np.float32), 1)


_COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip
_LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(form: Form) -> Callable[[Array, Array], Array]:
    """Take the comparison of setp; eq ... are false for a NaN, equ ... true."""
    name = form.one_of(
        *_COMPARISONS, "num", "nan", *(f"{name}u" for name in ("eq", "ne", "lt", "le", "gt", "ge"))
    )
    if name in ("num", "nan"):
        wanted = name == "nan"
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == wanted
    if name in _COMPARISONS and (name != "ne" or form.type()[0] != "f"):
        return _COMPARISONS[name]
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    ufunc = _COMPARISONS[name[:2]]
    return lambda a, b: ufunc(a, b) | np.isnan(a) | np.isnan(b)


@opcode("setp")
def _set_predicate(form: Form) -> Execute:
    kind = form.type(*_INTEGERS, "b16", "b32", "b64", *_FLOATS)
    compare, ftz = _comparison(form), form.flag("ftz")
    combine = None
    if form.count(3, 4) == 4:
        combine = _LOGIC[form.one_of(*_LOGIC)]
        other = form.reader(form.operands[3], "pred")
    writes = [form.writer(item, "pred") for item in form.vector(form.operands[0])]
    left, right = (form.reader(operand, kind) for operand in form.operands[1:3])

    def execute(state: Any, lanes: Lanes) -> None:
        a, b = left(state, lanes), right(state, lanes)
        holds = compare(flush(a), flush(b)) if ftz else compare(a, b)
        values = [holds, ~holds]
        if combine:
            extra = other(state, lanes)
            values = [combine(value, extra) for value in values]
        for write, value in zip(writes, values, strict=False):
            write(state, lanes, value)

    return execute


@opcode("selp")
def _select(form: Form) -> Execute:
    kind = form.type()
    form.count(4)
    reads = [form.reader(form.operands[3], "pred")]
    reads += [form.reader(operand, kind) for operand in form.operands[1:3]]
    return pure(form, np.where, reads, kind)
