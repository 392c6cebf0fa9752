"""Moves, logic, shifts and bit fields."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from tools.ptx.arithmetic import pure
from tools.ptx.decode import Execute, Form, Lanes, opcode
from tools.ptx.findings import PtxError
from tools.ptx.memory import WINDOWS
from tools.ptx.program import Literal, Vector
from tools.ptx.scalars import DTYPES, Array, unsigned

_BITS = ("b16", "b32", "b64")


@opcode("mov")
def _move(form: Form) -> Execute:
    kind = form.type()
    form.count(2)
    target, source = form.operands
    if isinstance(target, Vector):
        return _unpack(form, target, kind)
    if isinstance(source, Vector):
        return _pack(form, source, kind)
    return pure(form, lambda value: value, [form.reader(source, kind)], kind)


def _unpack(form: Form, target: Vector, kind: str) -> Execute:
    part = f"b{8 * DTYPES[kind].itemsize // len(target.items)}"
    read = form.reader(form.operands[1], kind)
    writes = [form.writer(item, part) for item in target.items]

    def execute(state: Any, lanes: Lanes) -> None:
        values = np.ascontiguousarray(read(state, lanes))
        parts = values.view(DTYPES[part]).reshape(len(values), len(writes))
        for index, write in enumerate(writes):
            write(state, lanes, parts[:, index].copy())

    return execute


def _pack(form: Form, source: Vector, kind: str) -> Execute:
    part = f"b{8 * DTYPES[kind].itemsize // len(source.items)}"
    reads = [form.reader(item, part) for item in source.items]

    def join(*values: Array) -> Array:
        return np.stack(np.broadcast_arrays(*values), axis=1).view(DTYPES[kind]).reshape(-1)

    return pure(form, join, reads, kind)


@opcode("cvta")
def _convert_address(form: Form) -> Execute:
    """Between an address of a state space and a generic one, which its window's base tells apart.

    Global addresses are the same as generic ones, as on the device.
    """
    back = form.flag("to")
    space = form.one_of("global", "shared", "local", "param", "const")
    form.count(2)
    kind = form.type("u64")
    base = np.uint64(WINDOWS[space] if space not in ("global", "const") else 0)
    function = (lambda a: a - base) if back else (lambda a: a + base)
    return pure(form, function, form.readers(1, kind), kind)


@opcode("and", "or", "xor", "not")
def _logic(form: Form) -> Execute:
    kind = form.type("pred", *_BITS)
    functions = {
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    }  # fmt: skip
    form.count(2 if form.name == "not" else 3)
    return pure(form, functions[form.name], form.readers(1, kind), kind)


@opcode("shl", "shr")
def _shift(form: Form) -> Execute:
    """Shifts; a count of the width or more shifts everything out."""
    kind = form.type(*_BITS, "u16", "s16", "u32", "s32", "u64", "s64")
    form.count(3)
    left, width = form.name == "shl", 8 * DTYPES[kind].itemsize

    def shift(a: Array, count: Array) -> Array:
        capped = np.minimum(count, width - 1).astype(a.dtype)
        value = a << capped if left else a >> capped
        if left or a.dtype.kind == "u":
            return np.where(count >= width, a.dtype.type(0), value)
        return value  # a >> (width - 1) is all sign bits already

    reads = [form.reader(form.operands[1], kind), form.reader(form.operands[2], "u32")]
    return pure(form, shift, reads, kind)


@opcode("shf")
def _funnel_shift(form: Form) -> Execute:
    """The upper (l) or lower (r) word of a shifted pair of words."""
    side, mode = form.one_of("l", "r"), form.one_of("clamp", "wrap")
    form.type("b32")
    form.count(4)

    def shift(low: Array, high: Array, count: Array) -> Array:
        count = count & np.uint32(31) if mode == "wrap" else np.minimum(count, np.uint32(32))
        pair = high.astype(np.uint64) << np.uint64(32) | low
        if side == "l":
            return ((pair << count.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
        return (pair >> count.astype(np.uint64)).astype(np.uint32)

    return pure(form, shift, form.readers(1, "b32"), "b32")


@opcode("bfe")
def _extract_field(form: Form) -> Execute:
    kind = form.type("u32", "s32", "u64", "s64")
    form.count(4)
    width = 8 * DTYPES[kind].itemsize
    word = unsigned(DTYPES[kind])

    def extract(a: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        first = np.minimum(start, width - 1)  # a signed field beyond the word is all sign bits
        end = np.minimum(start + length, width)
        end = np.maximum(end, first + 1)
        upper = (a.view(word) << (width - end).astype(word)).view(a.dtype)
        value = upper >> (width - end + first).astype(a.dtype)
        empty = (length == 0) | ((start >= width) & (a.dtype.kind == "u"))
        return np.where(empty, a.dtype.type(0), value)

    reads = [form.reader(form.operands[1], kind)]
    reads += [form.reader(operand, "u32") for operand in form.operands[2:]]
    return pure(form, extract, reads, kind)


@opcode("bfi")
def _insert_field(form: Form) -> Execute:
    kind = form.type("b32", "b64")
    form.count(5)
    width = 8 * DTYPES[kind].itemsize

    def insert(field: Array, base: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        word = base.dtype.type
        full = np.invert(word(0))
        ones = np.where(
            length >= width, full, (word(1) << np.minimum(length, width - 1).astype(word)) - word(1)
        )
        place = np.minimum(start, width - 1).astype(word)
        mask = np.where(start >= width, word(0), ones << place)
        return (base & ~mask) | ((field << place) & mask)

    reads = [form.reader(operand, kind) for operand in form.operands[1:3]]
    reads += [form.reader(operand, "u32") for operand in form.operands[3:]]
    return pure(form, insert, reads, kind)


@opcode("prmt")
def _permute_bytes(form: Form) -> Execute:
    """Each nibble of the selector picks one of eight bytes, or (bit 3) its sign replicated."""
    form.type("b32")
    form.count(4)

    def permute(a: Array, b: Array, selector: Array) -> Array:
        pair = b.astype(np.uint64) << np.uint64(32) | a
        result = np.uint32(0)
        for position in range(4):
            nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
            picked = (pair >> (8 * (nibble & np.uint32(7))).astype(np.uint64)).astype(np.uint32)
            picked = picked & np.uint32(255)
            sign = np.where(picked & np.uint32(128), np.uint32(255), np.uint32(0))
            picked = np.where(nibble & np.uint32(8), sign, picked)
            result = result | picked << np.uint32(8 * position)
        return np.asarray(result)

    return pure(form, permute, form.readers(1, "b32"), "b32")


@opcode("lop3")
def _three_input_logic(form: Form) -> Execute:
    form.type("b32")
    form.count(5)
    table = form.operands[4]
    if not isinstance(table, Literal):
        raise form.unsupported("a table that is not a literal")
    entries = [row for row in range(8) if int(table.text, 0) >> row & 1]

    def apply(a: Array, b: Array, c: Array) -> Array:
        terms = [
            (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            for row in entries
        ]
        return reduce(np.bitwise_or, terms, np.zeros(1, np.uint32))

    reads = [form.reader(operand, "b32") for operand in form.operands[1:4]]
    return pure(form, apply, reads, "b32")


@opcode("popc", "clz", "brev", "bfind")
def _count_bits(form: Form) -> Execute:
    kind = form.type("b32", "b64", *(("u32", "s32", "u64", "s64") if form.name == "bfind" else ()))
    form.count(2)
    width, shift_amount = 8 * DTYPES[kind].itemsize, form.flag("shiftamt")

    def highest(value: int) -> int:
        """Position of the highest bit that is not a sign bit, from the top if .shiftamt."""
        position = (value if value >= 0 else ~value).bit_length() - 1
        return (width - 1 - position if shift_amount else position) if position >= 0 else 2**32 - 1

    function = {
        "popc": int.bit_count,
        "clz": lambda value: width - value.bit_length(),
        "brev": lambda value: int(f"{value:0{width}b}"[::-1], 2),
        "bfind": highest,
    }[form.name]
    if shift_amount and form.name != "bfind":
        raise PtxError(f"not supported: .shiftamt in {form.instruction.where}")
    result = kind if form.name == "brev" else "u32"

    def apply(a: Array) -> Array:
        return np.array([function(int(value)) for value in a], DTYPES[result])

    return pure(form, apply, form.readers(1, kind), result)
