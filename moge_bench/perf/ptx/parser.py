"""PTX text to a Module of kernels, operands resolved: registers to slots, scopes flattened.

The grammar is what nvcc emits: entry functions, module variables, inline assembly in braces,
.loc line information. Bodies of device functions are skipped, since calls are not supported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from moge_bench.perf.ptx.findings import PtxError
from moge_bench.perf.ptx.scalars import DTYPES


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


@dataclass
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


_HEADER = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)\s*"
    r"(?:\(([^)]*)\))?([^{};]*)([{;])"
)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*")
_LINE_DIRECTIVE = re.compile(r"\.(?:file|version|target|address_size)\b[^\n]*")
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_STATEMENT = re.compile(r"((?:[^;{}]|\{[^{}]*\})*);")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?P<space>global|const|shared|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d*)\])?(?:\s*=\s*\{?(?P<values>[^}]*)\}?)?\s*$"
)
_INSTRUCTION = re.compile(r"(?:@(!?)([\w%$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{\[][^,]*")
_IGNORED = (".pragma",)


def parse(text: str) -> Module:
    """Return the module that ``text`` holds.

    Raises:
        PtxError: for text outside the grammar, with its line.
    """
    return _Parser(text).module


class _Parser:
    def __init__(self, text: str) -> None:
        blank = lambda match: "\n" * match[0].count("\n")  # noqa: E731  (keeps line numbers)
        text = re.sub(r"/\*.*?\*/", blank, text, flags=re.S)
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, flags=re.M))
        text = re.sub(r"//[^\n]*", "", text) if "//" in text else text
        self.text = re.sub(r"\.section\b[^{]*\{[^}]*\}", blank, text)
        target = re.search(r"\.target\s+(\w+)", self.text)
        self.module = Module(target[1] if target else "", {}, [])
        self.position, self.line, self.counted = 0, 1, 0
        self.kernel: Kernel | None = None
        self.scopes: list[dict[str, Register]] = []
        self.source: tuple[str, str] | None = None
        self.last_label = ""
        while self._skip_space():
            self._next()

    def _skip_space(self) -> bool:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.position < len(self.text)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self.line += self.text.count("\n", self.counted, self.position)
            self.counted, self.position = self.position, match.end()
        return match

    def _next(self) -> None:
        if match := self._take(_LOC):
            self.source = (match[1], match[2])
        elif self._take(_LINE_DIRECTIVE):
            pass
        elif match := self._take(_HEADER):
            self._header(match)
        elif self.text[self.position] == "{":
            self.position += 1
            self.scopes.append({})
        elif self.text[self.position] == "}":
            self.position += 1
            self._close_scope()
        elif match := self._take(_LABEL):
            self.last_label = match[1]
            if self.kernel:
                self.kernel.labels[match[1]] = len(self.kernel.code)
        elif match := self._take(_STATEMENT):
            self._statement(" ".join(match[1].split()))
        else:
            rest = self.text[self.position : self.position + 60].split("\n")[0]
            raise PtxError(f"cannot parse {rest!r}")

    def _header(self, match: re.Match[str]) -> None:
        kind, name, parameters, directives, end = match.groups()
        if end == ";":  # a declaration
            return
        limit = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
        threads = None
        if limit:
            threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1)
        found = [_variable(m, "param") for m in _PARAMETER.finditer(parameters or "")]
        self.kernel = Kernel(name, found, threads)
        self.scopes, self.source = [{}], None
        if kind == "entry":
            self.module.kernels[name] = self.kernel

    def _close_scope(self) -> None:
        if not self.scopes:
            raise PtxError(f"line {self.line}: a '}}' that closes nothing")
        self.scopes.pop()
        if not self.scopes:
            self.kernel = None

    def _statement(self, text: str) -> None:
        if text.startswith(_IGNORED) or not text:
            return
        if match := _VARIABLE.match(text):
            variable = _variable(match, match["space"])
            (self.kernel or self.module).variables.append(variable)
        elif self.kernel is None:
            raise PtxError(f"line {self.line}: cannot parse {text!r} outside a function")
        elif text.startswith(".reg"):
            self._registers(text)
        elif text.startswith(".branchtargets"):
            names = text.removeprefix(".branchtargets").split(",")
            self.kernel.branch_tables[self.last_label] = [name.strip() for name in names]
        else:
            self._instruction(self.kernel, text)

    def _registers(self, text: str) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text)
        if not match or match[1] not in DTYPES:
            raise PtxError(f"line {self.line}: cannot parse {text!r}")
        for name in match[2].split(","):
            family = re.match(r"\s*([%\w$]+)<(\d+)>", name)
            names = [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name.strip()]
            for one in names:
                assert self.kernel is not None
                self.scopes[-1][one] = Register(one, len(self.kernel.register_types), match[1])
                self.kernel.register_types.append(match[1])

    def _instruction(self, kernel: Kernel, text: str) -> None:
        match = _INSTRUCTION.match(text)
        if not match:
            raise PtxError(f"line {self.line}: cannot parse {text!r}")
        negated, guard, opcode, rest = match.groups()
        operands = tuple(self._operand(item.strip()) for item in _OPERAND.findall(rest))
        register = self._operand(guard) if guard else None
        assert register is None or isinstance(register, Register)
        where = f"`{text}` (PTX line {self.line})"
        if self.source:
            name = self.files.get(self.source[0], "?").rsplit("/", 1)[-1]
            where = f"{name}:{self.source[1]} {where}"
        kernel.code.append(
            Instruction(opcode, operands, register, bool(negated), len(kernel.code), where)
        )

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            items = text[1:-1].split(",")
            return Vector(tuple(self._operand(item.strip()) for item in items))
        if text[0] == "[":
            base, _, offset = text[1:-1].partition("+")
            address = self._operand(base.strip())
            assert isinstance(address, (Register, Symbol, Literal))
            return Address(address, int(offset, 0) if offset else 0)
        if "|" in text:
            return Vector(tuple(self._operand(item.strip()) for item in text.split("|")))
        if text[0] == "!":
            register = self._operand(text[1:])
            assert isinstance(register, Register)
            return Not(register)
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if text[0] == "%":
            return Special(text)
        if text[0].isdigit() or text[0] == "-":
            return Literal(text)
        return Symbol(text)


def _variable(match: re.Match[str], space: str) -> Variable:
    kind, count = match["type"], match["count"]
    if kind not in DTYPES:
        raise PtxError(f"cannot parse variable {match[0]!r}")
    width = DTYPES[kind].itemsize
    values = tuple(v.strip() for v in (match.groupdict().get("values") or "").split(",") if v)
    size = width if count is None else width * int(count or 0)
    return Variable(match["name"], space, int(match["align"] or width), kind, size, values)
