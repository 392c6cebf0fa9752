"""Parsers of what ptxas and nvdisasm say about a kernel, and short names for mangled ones."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel; a spill counts the bytes stored and those loaded."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_bytes: int


def parse_ptxas(text: str) -> dict[str, Resources]:
    """Return the resources of every kernel in the output of ``ptxas -v``, by mangled name.

    The shared memory is the kernel's own: unlike cuobjdump, ptxas does not add the 1024 bytes that
    the system reserves on sm_90 and later. Raises ValueError for a kernel without all its lines.
    """
    found = {}
    parts = re.split(r"Compiling entry function '(\w+)' for '\w+'", text)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", body
        )
        used = re.search(r"Used (\d+) registers(.*)", body)
        if frame is None or used is None:
            raise ValueError(f"ptxas -v says nothing of the registers or spills of {name}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        found[name] = Resources(
            registers=int(used[1]),
            spill_bytes=int(frame[2]) + int(frame[3]),
            stack_bytes=int(frame[1]),
            static_shared_bytes=int(shared[1]) if shared else 0,
        )
    return found


_SECTION = re.compile(r"//-+ \.text\.(\S+) -+")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")


def parse_sass(text: str) -> dict[str, Counter[str]]:
    """Return how often every kernel in the output of ``nvdisasm -c`` holds each opcode.

    NOP is left out: it is padding behind the last instruction.
    """
    found: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in text.splitlines():
        if section := _SECTION.match(line):
            current = found.setdefault(section[1], Counter())
        elif line.startswith("//-"):
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current[instruction[1]] += 1
    for counts in found.values():
        del counts["NOP"]
    return found


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Return ``route_forward<4, float>`` for every mangled name: no scope, no parameters.

    Uses binutils' c++filt, which stands beside g++.
    """
    names = list(dict.fromkeys(mangled))
    command = ["c++filt"]
    text = "\n".join(names) + "\n"
    output = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return {name: _short(full) for name, full in zip(names, output.splitlines(), strict=True)}


def _short(demangled: str) -> str:
    name = demangled.removeprefix("void ")
    depth = 0
    for position, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        anonymous = name.startswith("(anonymous namespace)", position)
        if letter == "(" and depth == 0 and not anonymous and position:
            name = name[:position]
            break
    # Scopes go, also those of template arguments; casts of enumerations and literals stay short.
    name = name.replace("(anonymous namespace)::", "")
    return re.sub(r"\w+::", "", re.sub(r"\((?:\w+(?:::)?)+\)(?=\d)", "", name))
