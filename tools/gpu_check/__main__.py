"""``moge-bench perf gpu-check``. Imported by the command line only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moge_bench.perf.gpu import check
from moge_bench.perf.gpu.toolchain import Toolchain
from moge_bench.perf.ptx import PtxError

console = Console(stderr=True)


def gpu_check(
    case: Annotated[str | None, typer.Option(help="Only cases whose name matches this.")] = None,
    update: Annotated[bool, typer.Option(help="Rewrite the committed table.")] = False,
    table: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("results/perf"),
    build: Annotated[Path, typer.Option(help="Folder of what is compiled.")] = Path(
        "build/gpu_check"
    ),
    csrc: Annotated[Path, typer.Option(help="Folder of the sources.")] = Path("csrc"),
) -> None:
    """Exit 0 if every CUDA kernel keeps its bounds and the table, 1 if not, 2 on error; no GPU."""
    try:
        if update and case:
            raise ValueError("--update writes the whole table: leave --case out")
        if not (csrc / "cuda" / "launch.h").exists():
            raise ValueError(f"--csrc must be the repository's csrc, got {csrc}: no cuda/launch.h")
        toolchain = Toolchain.find(build)
        outcome = check.check(
            toolchain, csrc, None if update else table / f"{check.STEM}.csv", pattern=case,
            progress=lambda text: console.print(text, markup=False, highlight=False),
        )  # fmt: skip
    except (ValueError, RuntimeError, PtxError) as error:
        console.print(f"moge-bench perf: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    paths = check.write(outcome.costs, toolchain.version(), table if update else build)
    console.print(f"wrote {', '.join(map(str, paths))}")
    for note in outcome.notes:
        console.print(note, markup=False)
    for violation in outcome.violations:
        console.print(str(violation), style="red", markup=False, soft_wrap=True, highlight=False)
    if outcome.violations:
        raise typer.Exit(1)
    console.print(f"{len(outcome.costs)} rows, every bound kept")
