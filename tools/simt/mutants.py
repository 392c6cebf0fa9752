"""Takes the barriers of the CUDA kernels away, one at a time: is each missed? make mutants.

python -m tools.simt.mutants [HEADER ...] does so for every header of csrc/cuda, or for those named.
A barrier whose absence no test notices is either superfluous or untested. For each one the kernels
that it is part of are compiled without it, in the traced build, and run until a check fails. Some
minutes; prints what noticed each, and ends with an error if one was not missed.
"""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from tools.simt import cases, checks, dispatch_checks, launch
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


def every_check(kernels: Kernels) -> Iterator[Callable[[], None]]:
    """Yield the checks in the order in which they are run, each without arguments."""
    for case in [*[*cases.every_case()][::2], *cases.SPECIAL]:
        yield partial(checks.check_case, kernels, case, (0, 1))
    builds = [(kernels, schedule) for schedule in launch.SCHEDULES]
    for border, num_experts in itertools.product(("valid", "torus"), (64, 300, 1024)):
        yield partial(checks.check_group_norm, builds, torch.float32, num_experts, border)
    for num_tokens, num_experts, top_k in ((33, 64, 8), (300, 1024, 4), (1500, 16, 2)):
        experts = dispatch_checks.draw_choices(num_tokens, num_experts, top_k)
        yield partial(dispatch_checks.check_sorted, kernels, experts, num_experts, launch.SCHEDULES)


def what_notices(header: Path, index: int) -> str | None:
    """Return the first failure without the barrier of that line, or None if there is none."""
    lines = header.read_text().splitlines(keepends=True)
    lines[index] = BARRIER.sub(";", lines[index])
    with tempfile.TemporaryDirectory() as folder:
        mutant = Path(folder) / "cuda" / header.name
        mutant.parent.mkdir()
        mutant.write_text("".join(lines))
        kernels = Kernels("trace", Path(folder))
        for check in every_check(kernels):
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
