"""Takes the barriers of the CUDA kernels away, one at a time: is each missed? make mutants.

python -m tools.simt.mutants [HEADER ...] does so for every header of csrc/cuda, or for those named.
A barrier whose absence no test notices is either superfluous or untested. For each one the kernels
that it is part of are compiled without it, in the traced build, and run until a check fails. Some
minutes; prints what noticed each, and ends with an error if one was not missed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.simt.every_check import every_check
from tools.simt.kernels import CUDA, Kernels

BARRIER = re.compile(r"__sync(warp|threads)\(\);")


def every_barrier(names: list[str]) -> Iterator[tuple[Path, int]]:
    """Yield the header and the index of the line of every barrier of these headers, or of all."""
    for header in sorted(CUDA.glob("*.cuh")):
        if names and header.name not in names:
            continue
        for index, line in enumerate(header.read_text().splitlines()):
            if BARRIER.search(line):
                yield header, index


def what_notices(header: Path, index: int) -> str | None:
    """Return the first failure without the barrier of that line, or None if there is none."""
    lines = header.read_text().splitlines(keepends=True)
    lines[index] = BARRIER.sub(";", lines[index])
    with tempfile.TemporaryDirectory() as folder:
        mutant = Path(folder) / "cuda" / header.name
        mutant.parent.mkdir()
        mutant.write_text("".join(lines))
        kernels = Kernels("trace", Path(folder))
        for check in every_check(kernels, 2):
            try:
                check()
            except (AssertionError, RuntimeError) as failure:
                return str(failure).splitlines()[0]
    return None


if __name__ == "__main__":
    unnoticed = 0
    for header, index in every_barrier(sys.argv[1:]):
        noticed = what_notices(header, index)
        unnoticed += noticed is None
        print(f"{header.name}:{index + 1}: {noticed or 'NOT MISSED'}", flush=True)
    sys.exit(f"{unnoticed} barriers were not missed" if unnoticed else 0)
