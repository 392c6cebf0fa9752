"""``python -m tools.gpu_check``, which ``make gpu-check`` calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.gpu_check import check
from tools.gpu_check.toolchain import Toolchain
from tools.ptx import PtxError

app = typer.Typer()
console = Console(stderr=True)


@app.command()
def gpu_check(
    case: Annotated[str | None, typer.Option(help="Only cases whose name matches this.")] = None,
    update: Annotated[
        bool, typer.Option(help="Rewrite the committed table, or its rows of --case.")
    ] = False,
    table: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("results/perf"),
    build: Annotated[Path, typer.Option(help="Folder of what is compiled.")] = Path(
        "build/gpu_check"
    ),
    csrc: Annotated[Path, typer.Option(help="Folder of the sources.")] = Path("csrc"),
) -> None:
    """Exit 0 if every CUDA kernel keeps its bounds and the table, 1 if not, 2 on error; no GPU."""
    try:
        if not (csrc / "cuda" / "launch.h").exists():
            raise ValueError(f"--csrc must be the repository's csrc, got {csrc}: no cuda/launch.h")
        toolchain = Toolchain.find(build)
        outcome = check.check(
            toolchain, csrc, None if update else table / f"{check.STEM}.csv", pattern=case,
            progress=lambda text: console.print(text, markup=False, highlight=False),
        )  # fmt: skip
    except (ValueError, RuntimeError, PtxError) as error:
        console.print(f"gpu-check: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    costs = outcome.costs
    if update and case:
        costs = check.merged(table / f"{check.STEM}.csv", costs, outcome.kernels)
    paths = check.write(costs, toolchain.version(), table if update else build)
    console.print(f"wrote {', '.join(map(str, paths))}")
    for note in outcome.notes:
        console.print(note, markup=False)
    for violation in outcome.violations:
        console.print(str(violation), style="red", markup=False, soft_wrap=True, highlight=False)
    if outcome.violations:
        raise typer.Exit(1)
    console.print(f"{len(outcome.costs)} rows, every bound kept")


if __name__ == "__main__":
    app(prog_name="python -m tools.gpu_check")
