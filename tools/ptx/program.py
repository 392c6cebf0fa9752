"""A parsed PTX module: kernels of instructions whose operands are resolved."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    """A virtual register: its place in the register file and its declared type."""

    name: str
    slot: int
    type: str


@dataclass(frozen=True)
class Special:
    """A read-only register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A number as it stands in the text: decimal, hexadecimal, 0f... or 0d...."""

    text: str


@dataclass(frozen=True)
class Symbol:
    """The name of a variable, a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Register | Symbol | Literal
    offset: int


@dataclass(frozen=True)
class Not:
    """A negated predicate, !%p1."""

    register: Register


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}, or the pair a|b."""

    items: tuple[Operand, ...]


Operand = Register | Special | Literal | Symbol | Address | Not | Vector


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``index`` is its place in the kernel, ``where`` names it to a reader."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    index: int
    where: str


@dataclass(frozen=True)
class Variable:
    """A variable of a state space; ``size`` in bytes is 0 for dynamic shared memory."""

    name: str
    space: str
    align: int
    type: str
    size: int
    values: tuple[str, ...] = ()


@dataclass(eq=False)  # compared by identity: what is decoded is kept by kernel
class Kernel:
    """An entry function."""

    name: str
    parameters: list[Variable]
    max_threads: int | None
    variables: list[Variable] = field(default_factory=list)
    register_types: list[str] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_tables: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Module:
    """The kernels of one PTX file by name, and the variables they share."""

    target: str
    kernels: dict[str, Kernel]
    variables: list[Variable]
