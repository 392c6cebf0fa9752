"""From an instruction to a Python function: operand readers and writers, and the opcode table.

A builder looks at an instruction once and returns ``execute(state, lanes)``, which runs it for
the given lanes: a slice for all of them, else an index array. Every part of the opcode must be
consumed by the builder; what is left over is an error, so that no modifier is ever skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tools.ptx.findings import PtxError
from tools.ptx.program import (
    Address,
    Instruction,
    Literal,
    Not,
    Operand,
    Register,
    Special,
    Symbol,
    Vector,
)
from tools.ptx.scalars import DTYPES, Array, unsigned

Lanes = Any  # slice(None) or an int64 index array


class State(Protocol):
    """What the functions of instructions see of a running chunk of blocks."""

    registers: list[Array]
    special: dict[str, Array]
    symbols: dict[str, int]


Read = Callable[[Any, Lanes], Array]
Write = Callable[[Any, Lanes, Array], None]
# Returns None, or for a warp collective the lanes that got through it.
Execute = Callable[[Any, Lanes], Any]
Builder = Callable[["Form"], Execute]

_BUILDERS: dict[str, Builder] = {}
# Modifiers without effect on what a single device computes here: cache hints and scopes.
_HINTS = re.compile(r"(ca|cg|cs|lu|cv|wb|wt|nc|L1::\w+|L2::\w+|uni|aligned|cta|gpu|sys)$")


def opcode(*names: str) -> Callable[[Builder], Builder]:
    """Register a builder for opcodes of these first parts."""

    def register(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


def supported_opcodes() -> list[str]:
    """First parts of the opcodes that have a builder, sorted."""
    return sorted(_BUILDERS)


def build(instruction: Instruction) -> Execute:
    """Return the function that executes ``instruction``.

    Raises:
        PtxError: naming the instruction and its line, if any part of it is not supported.
    """
    form = Form(instruction)
    builder = _BUILDERS.get(form.name)
    if builder is None:
        raise form.unsupported(f"opcode {form.name}")
    execute = builder(form)
    if form.rest:
        raise form.unsupported("modifier ." + ".".join(form.rest))
    return execute


class Form:
    """An instruction while its builder takes its opcode apart.

    ``name`` is the first part; ``types`` are the types at the end, which a builder reads at will;
    ``rest`` are the modifiers that nobody has taken yet.
    """

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.operands = instruction.operands
        self.name, *parts = instruction.opcode.split(".")
        self.types: list[str] = []
        while parts and parts[-1] in DTYPES:
            self.types.insert(0, parts.pop())
        self.rest = parts

    def unsupported(self, what: str) -> PtxError:
        """The error that names ``what`` this interpreter cannot run."""
        return PtxError(f"not supported: {what} in {self.instruction.where}")

    def flag(self, name: str) -> bool:
        """Take modifier ``name``; say whether it was there."""
        if name in self.rest:
            self.rest.remove(name)
            return True
        return False

    def one_of(self, *names: str, default: str | None = None) -> str:
        """Take one of several modifiers; an error if none is there and no default given."""
        for name in names:
            if self.flag(name):
                return name
        if default is None:
            raise self.unsupported(f"an opcode without one of .{', .'.join(names)}")
        return default

    def drop_hints(self) -> None:
        """Take all cache hints and scopes."""
        self.rest = [part for part in self.rest if not _HINTS.match(part)]

    def type(self, *allowed: str) -> str:
        """Return the last type, which must be one of ``allowed`` if any are given."""
        if not self.types or (allowed and self.types[-1] not in allowed):
            raise self.unsupported(f"type {self.types[-1:] or 'none'}")
        return self.types[-1]

    def count(self, *allowed: int) -> int:
        """Return the number of operands, which must be one of ``allowed``."""
        if len(self.operands) not in allowed:
            raise self.unsupported(f"{len(self.operands)} operands")
        return len(self.operands)

    def reader(self, operand: Operand, kind: str, *, narrow: bool = False) -> Read:
        """Return the function that reads ``operand`` as type ``kind``.

        ``narrow`` allows a register wider than the type (ld, st, cvt, shift counts).
        """
        dtype = DTYPES[kind]
        if isinstance(operand, Register):
            return self._register_reader(operand, dtype, narrow)
        if isinstance(operand, Not) and kind == "pred":
            slot = operand.register.slot
            return lambda state, lanes: ~state.registers[slot][lanes]
        if isinstance(operand, Special):
            return self._special_reader(operand.name, dtype)
        if isinstance(operand, Symbol):
            name = operand.name
            return lambda state, lanes: np.array([state.symbols[name]], dtype)
        if isinstance(operand, Literal):
            value = literal(operand.text, kind)
            return lambda state, lanes: value
        raise self.unsupported(f"operand {operand}")

    def readers(self, first: int, kind: str) -> list[Read]:
        """Return readers of all operands from number ``first`` on."""
        return [self.reader(operand, kind) for operand in self.operands[first:]]

    def writer(self, operand: Operand, kind: str, *, narrow: bool = False) -> Write:
        """Return the function that writes values of type ``kind`` to ``operand``.

        ``narrow`` allows a register wider than the type, which is extended by the type's sign.
        """
        dtype = DTYPES[kind]
        if operand == Symbol("_"):
            return lambda state, lanes, values: None
        if not isinstance(operand, Register):
            raise self.unsupported(f"destination {operand}")
        slot, own = operand.slot, DTYPES[operand.type]
        if own.itemsize == dtype.itemsize and (own.kind == "b") == (dtype.kind == "b"):
            bits = unsigned(dtype)

            def write(state: State, lanes: Lanes, values: Array) -> None:
                state.registers[slot][lanes] = values.view(bits)

            return write
        if not narrow or own.itemsize < dtype.itemsize or own.kind == "b":
            raise self.unsupported(f"{operand.name} of type {operand.type} for a value of {kind}")
        bits = unsigned(dtype)
        wide = np.dtype(f"i{own.itemsize}") if dtype.kind == "i" else unsigned(own)

        def extend(state: State, lanes: Lanes, values: Array) -> None:
            source = values if dtype.kind == "i" else values.view(bits)
            state.registers[slot][lanes] = source.astype(wide).view(unsigned(own))

        return extend

    def vector(self, operand: Operand) -> tuple[Operand, ...]:
        """Return the parts of {a, b} or a|b, or the operand itself as the only part."""
        return operand.items if isinstance(operand, Vector) else (operand,)

    def address(self, operand: Operand) -> Read:
        """Return the function that computes [base + offset] as int64, (lanes,) or (1,)."""
        if not isinstance(operand, Address):
            raise self.unsupported(f"address {operand}")
        narrow = isinstance(operand.base, Register) and DTYPES[operand.base.type].itemsize == 4
        base, offset = self.reader(operand.base, "u32" if narrow else "u64"), operand.offset
        if narrow:  # such an address wraps at 32 bits
            return lambda state, lanes: (base(state, lanes).astype(np.int64) + offset) & 0xFFFFFFFF
        return lambda state, lanes: base(state, lanes).astype(np.int64) + offset

    def _register_reader(self, register: Register, dtype: np.dtype[Any], narrow: bool) -> Read:
        slot, own = register.slot, DTYPES[register.type]
        if own.itemsize == dtype.itemsize and (own.kind == "b") == (dtype.kind == "b"):
            if own.kind == "b":
                return lambda state, lanes: state.registers[slot][lanes]
            return lambda state, lanes: state.registers[slot][lanes].view(dtype)
        if not narrow or own.itemsize < dtype.itemsize or own.kind == "b":
            raise self.unsupported(f"{register.name} of type {register.type} read as {dtype}")
        bits = unsigned(dtype)
        return lambda state, lanes: state.registers[slot][lanes].astype(bits).view(dtype)

    def _special_reader(self, name: str, dtype: np.dtype[Any]) -> Read:
        if name not in SPECIALS:
            raise self.unsupported(f"special register {name}")

        def read(state: State, lanes: Lanes) -> Array:
            values = state.special[name]
            return (values if len(values) == 1 else values[lanes]).astype(dtype)

        return read


SPECIALS = frozenset(
    [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    + ["%laneid", "%warpid"]
    + [f"%lanemask_{relation}" for relation in ("eq", "lt", "le", "gt", "ge")]
)


def literal(text: str, kind: str) -> Array:
    """Return the value of a number in the text as a (1,) array of type ``kind``."""
    dtype = DTYPES[kind]
    if text[:2].lower() in ("0f", "0d"):
        single = text[1] in "fF"
        bits = np.array([int(text[2:], 16)], np.uint32 if single else np.uint64)
        return bits.view(np.float32 if single else np.float64).astype(dtype)
    if dtype.kind == "b":
        return np.array([int(text, 0) != 0])
    if dtype.kind == "f":  # a decimal number, or the bits of a narrower register
        return np.array([float(text)], dtype)
    number = int(text.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
    return np.array([number], unsigned(dtype)).view(dtype)
