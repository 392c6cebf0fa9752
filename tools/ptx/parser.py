"""PTX text to a Module of kernels, operands resolved: registers to slots, scopes flattened.

The grammar is what nvcc emits: entry functions, module variables, inline assembly in braces,
.loc line information. Bodies of device functions are skipped, since calls are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Container

from tools.ptx.findings import PtxError
from tools.ptx.program import (
    Address,
    Instruction,
    Kernel,
    Literal,
    Module,
    Not,
    Operand,
    Register,
    Special,
    Symbol,
    Variable,
    Vector,
)
from tools.ptx.scalars import DTYPES

_HEADER = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)*\.(entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)\s*"
    r"(?:\(([^)]*)\))?([^{};]*)([{;])"
)
_SPACE = re.compile(r"\s*")
_BRACE = re.compile(r"[{}]")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)(?:[^\n]*inlined_at\s+(\d+)\s+(\d+))?[^\n]*")
_LINE_DIRECTIVE = re.compile(r"\.(?:file|version|target|address_size)\b[^\n]*")
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_STATEMENT = re.compile(r"((?:[^;{}]|\{[^{}]*\})*);")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s+(?:\.(?!align)\w+\s+)?(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?P<space>global|const|shared|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d*)\])?(?:\s*=\s*\{?(?P<values>[^}]*)\}?)?\s*$"
)
_INSTRUCTION = re.compile(r"(?:@(!?)([\w%$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{\[][^,]*")
_IGNORED = (".pragma",)


def parse(text: str, only: Container[str] | None = None) -> Module:
    """Return the module that ``text`` holds; of its kernels those whose name is in ``only``.

    Raises:
        PtxError: for text outside the grammar, with its line.
    """
    return _Parser(text, only).module


class _Parser:
    def __init__(self, text: str, only: Container[str] | None) -> None:
        self.only = only
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
        self.source = ""
        self.last_label = ""
        self.known: dict[str, Operand] = {}  # operands by their text, until a scope changes
        while self._skip_space():
            self._next()

    def _skip_space(self) -> bool:
        match = _SPACE.match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        return self.position < len(self.text)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self.line += self.text.count("\n", self.counted, self.position)
            self.counted, self.position = self.position, match.end()
        return match

    def _next(self) -> None:
        first = self.text[self.position]
        if first == "." and self._directive():
            return
        if first == "{":
            self.position += 1
            self.scopes.append({})
        elif first == "}":
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

    def _directive(self) -> bool:
        """Take a directive that does not end with a semicolon; say whether there was one."""
        if match := self._take(_LOC):
            self.source = f"{self._file(match[1])}:{match[2]} "
            if match[3]:
                self.source += f"inlined at {self._file(match[3])}:{match[4]} "
        elif self._take(_LINE_DIRECTIVE):
            pass
        elif match := self._take(_HEADER):
            self._header(match)
        else:
            return False
        return True

    def _header(self, match: re.Match[str]) -> None:
        kind, name, parameters, directives, end = match.groups()
        if end == ";":  # a declaration
            return
        if kind == "func" or (self.only is not None and name not in self.only):
            self._skip_body()
            return
        limit = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
        threads = None
        if limit:
            threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1)
        found = [_variable(m, "param") for m in _PARAMETER.finditer(parameters or "")]
        self.kernel = Kernel(name, found, threads)
        self.scopes, self.source = [{}], ""
        self.module.kernels[name] = self.kernel

    def _skip_body(self) -> None:
        """Go on behind the brace that closes the one just taken."""
        depth = 1
        while depth:
            match = _BRACE.search(self.text, self.position)
            if match is None:
                raise PtxError(f"line {self.line}: a '{{' that nothing closes")
            self.position = match.end()
            depth += 1 if match[0] == "{" else -1

    def _close_scope(self) -> None:
        if not self.scopes:
            raise PtxError(f"line {self.line}: a '}}' that closes nothing")
        self.scopes.pop()
        self.known.clear()
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
                self.known.clear()
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
        where = f"{self.source}`{text}` (PTX line {self.line})"
        kernel.code.append(
            Instruction(opcode, operands, register, bool(negated), len(kernel.code), where)
        )

    def _file(self, number: str) -> str:
        return self.files.get(number, "?").rsplit("/", 1)[-1]

    def _operand(self, text: str) -> Operand:
        if text not in self.known:
            self.known[text] = self._resolve(text)
        return self.known[text]

    def _resolve(self, text: str) -> Operand:
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
