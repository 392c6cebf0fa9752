"""The whole check: compile, measure every case, judge, write the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_bench.system import digest_files, write_atomically
from tools.gpu_check import built as building
from tools.gpu_check import cost as table
from tools.gpu_check.architectures import ARCHITECTURES, Architecture
from tools.gpu_check.cases import Case, all_cases
from tools.gpu_check.cost import Cost
from tools.gpu_check.launches import LauncherLibrary
from tools.gpu_check.measure import measure
from tools.gpu_check.report import markdown
from tools.gpu_check.toolchain import Toolchain
from tools.gpu_check.verdict import Violation, broken_bounds, not_launched, regressions

STEM = "gpu_cost"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """The rows, what is wrong with them, what was not compared; the names of all kernels."""

    costs: list[Cost]
    violations: list[Violation]
    notes: list[str]
    kernels: frozenset[str]


def select(pattern: str | None) -> list[Case]:
    """Return the cases whose name matches ``pattern``, all for None; ValueError for none."""
    cases = [case for case in all_cases() if pattern is None or re.search(pattern, case.name)]
    if not cases:
        names = "\n  ".join(case.name for case in all_cases())
        raise ValueError(f"no case matches {pattern!r}; the cases are\n  {names}")
    return cases


def cost_rows(
    toolchain: Toolchain, csrc: Path, cases: Sequence[Case],
    architectures: Sequence[Architecture], progress: Progress,
) -> tuple[list[Cost], frozenset[str]]:  # fmt: skip
    """Compile csrc/cuda and measure ``cases``; return the rows and the names of all kernels.

    The rows of a case are kept in the toolchain's cache until something they depend on changes.
    """
    sources = sorted((csrc / "cuda").glob("*.cu"))
    built = {}
    for architecture in architectures:
        progress(f"compiling for {architecture.name}")
        built[architecture] = building.build(toolchain, sources, csrc, architecture)
    sizes = building.argument_sizes(built[architectures[0]])
    library_path = toolchain.launcher_library(sources, csrc)
    library = LauncherLibrary(library_path, sizes)
    costs: dict[tuple[str, str, str], Cost] = {}
    for case in cases:
        progress(case.name)
        kept = toolchain.cache / f"counts-{_key(library_path, case, architectures)}.csv"
        if not kept.exists():
            rows = measure(case, built, library, csrc, toolchain.version())
            write_atomically(kept, table.to_csv(rows))
        for cost in table.read_csv(kept):
            # The kernel that adds up partial sums is the same for every element type.
            if costs.setdefault(cost.key, cost) != cost:
                raise RuntimeError(f"{' '.join(cost.key)}: two cases give it different costs")
    kernels = frozenset(kernel.name for kernel in built[architectures[0]].values())
    return list(costs.values()), kernels


def _key(library: Path, case: Case, architectures: Sequence[Architecture]) -> str:
    """Return a hash of all that a case's rows depend on: kernels, case, report, interpreter."""
    # The library's name holds the hash of every source and header, and of the compiler.
    folder = Path(__file__).resolve().parent
    own = [*folder.glob("*.py"), *folder.with_name("ptx").glob("*.py")]
    files = [folder.with_name("interface.py"), *own]
    return digest_files(files, folder.parent, library.name, repr(case), repr(architectures))


def check(
    toolchain: Toolchain, csrc: Path, committed: Path | None, *, pattern: str | None,
    progress: Progress,
) -> Outcome:  # fmt: skip
    """Measure the cases that match ``pattern`` and judge them against bounds and ``committed``.

    Without a committed table, the bounds alone.

    Raises ValueError for a pattern without cases or a table of other columns, RuntimeError where a
    compiler or launcher fails.
    """
    costs, kernels = cost_rows(toolchain, csrc, select(pattern), ARCHITECTURES, progress)
    violations = broken_bounds(costs)
    if pattern is None:
        violations += not_launched(kernels, costs)
    if committed is None:
        return Outcome(costs, violations, [], kernels)
    if not committed.exists():
        notes = [f"no {committed}: nothing to compare with"]
        return Outcome(costs, violations, notes, kernels)
    before = table.read_csv(committed)
    if pattern is not None:
        keys = {cost.key for cost in costs}
        before = [cost for cost in before if cost.key in keys]
    others = {cost.nvcc for cost in before} - {cost.nvcc for cost in costs}
    notes = [f"the committed rows of nvcc {nvcc} were not compared" for nvcc in sorted(others)]
    return Outcome(costs, violations + regressions(costs, before), notes, kernels)


def merged(committed: Path, costs: Sequence[Cost], kernels: Collection[str]) -> list[Cost]:
    """Return the rows of the table at ``committed``, with ``costs`` in the place of theirs.

    Rows of what is none of ``kernels`` any more are left out.
    """
    rows = {cost.key: cost for cost in table.read_csv(committed) if cost.kernel in kernels}
    return [*(rows | {cost.key: cost for cost in costs}).values()]


def write(costs: list[Cost], nvcc: str, folder: Path) -> list[Path]:
    """Write the table as CSV and Markdown into ``folder``; return their paths."""
    paths = [folder / f"{STEM}.csv", folder / f"{STEM}.md"]
    write_atomically(paths[0], table.to_csv(costs))
    write_atomically(paths[1], markdown(costs, nvcc))
    return paths
