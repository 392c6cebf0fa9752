"""Instructions in the loops of the routing kernels, read from the disassembly of their objects.

valgrind runs no AVX-512, so how often a loop runs is not counted here, only how long it is. The
same is read of AVX2, whose instructions callgrind counts: what the two have in common is what the
one says of the other.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from moge_bench.perf.revisions import Revision

# The loops of a float32 call at k=2, h=3; V is the vector type. Backward the last three are run at
# N=64 with a border, the two before them where no row of the map is a register.
_MAP = "RowMap<V, 8, 1, false>"
FUNCTIONS = (
    "load_rows<V, float>", "insert_top<V, 2>", "exponentials<V, 3, false>", "sum_norms<V, 3>",
    "add_importance<V>", "recompute_exponentials<V, 3, false>", "norm_gradient<V, 3, (Energy)0>",
    f"row_scores<V, float, {_MAP}, false>", f"row_inverse<V, {_MAP}, false, false>",
    f"row_adjoint<V, {_MAP}, false, false>",
)  # fmt: skip
VECTORS = {"avx2": "Avx2Float", "avx512": "Avx512Float"}
Loops = dict[str, dict[str, list[int]]]

_HEAD = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_LINE = re.compile(r"^\s+([0-9a-f]+):\t(\S+)(?:\s+([0-9a-f]+)\b)?")


def innermost_loops(lines: list[str]) -> list[int]:
    """Return the number of instructions of each loop that holds no other, in order of address.

    ``lines``: the instructions of one function as objdump prints them. A loop is what lies between
    a jump backwards and where it goes; several to one place are one loop.
    """
    parsed = [match for line in lines if (match := _LINE.match(line))]
    addresses = [int(match[1], 16) for match in parsed]
    ends: dict[int, int] = {}
    for address, match in zip(addresses, parsed, strict=True):
        if match[2].startswith("j") and match[3] and addresses[0] <= int(match[3], 16) <= address:
            ends[int(match[3], 16)] = address
    inner = [
        (head, end) for head, end in ends.items()
        if not any(head <= other and ends[other] <= end for other in ends if other != head)
    ]  # fmt: skip
    return [sum(head <= at <= end for at in addresses) for head, end in sorted(inner)]


def read_loops(disassembly: str, vector: str) -> dict[str, list[int]]:
    """Return the loops of ``FUNCTIONS`` of the vector type in ``objdump -d -C``'s text."""
    wanted = {name: " " + re.sub(r"\bV\b", vector, name) + "(" for name in FUNCTIONS}
    found: dict[str, list[int]] = {}
    for part in disassembly.split("\n\n"):
        head, *lines = part.strip("\n").split("\n")
        match = _HEAD.match(head)
        symbol = match[1].replace("moge::(anonymous namespace)::", "") if match else ""
        for name, text in wanted.items():
            if text in symbol and "cold" not in symbol:
                found[name] = innermost_loops(lines)
    return found


def count_loops(revision: Revision) -> Loops:
    """Return instruction set -> function -> the lengths of its innermost loops.

    Raises RuntimeError where objdump is missing or fails; empty where nothing was built for x86-64.
    """
    loops: Loops = {}
    for isa, vector in VECTORS.items():
        for path in sorted(revision.tree.glob(f"build/temp*/csrc/cpu/kernels_{isa}.o")):
            loops[isa] = read_loops(_disassembly(path), vector)
    return loops


def _disassembly(path: Path) -> str:
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", str(path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"objdump (binutils) is needed to read {path.name}: {error}") from error
    return result.stdout


def table(loops: Loops) -> str:
    """Return the loops as Markdown; "" where there are none."""
    if not loops:
        return ""
    lines = [
        "", "## Loops of the AVX-512 kernels", "",
        "Instructions in each innermost loop, by disassembly, of a float32 call at k=2, h=3. A "
        "turn is for 8 tokens in AVX2, 16 in AVX-512: an expert or a group, where the compiler did "
        "not put several into one; of `row_` functions for all experts of one token in AVX2, two "
        "in AVX-512.", "",
        "| function | " + " | ".join(loops) + " |", "|---" * (1 + len(loops)) + "|",
    ]  # fmt: skip
    for name in FUNCTIONS:
        cells = [", ".join(map(str, loops[isa].get(name, []))) or "-" for isa in loops]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
