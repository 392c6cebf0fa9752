"""All commands, as one application."""

from __future__ import annotations

from typing import Annotated

import typer

from moge_bench import __version__
from moge_bench.cli import analysis, gate, look, read, run
from moge_bench.cli.interrupted import Commands

app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Topographic group-norm routing for Mixture-of-Experts models: benchmarks and ablations.",
    epilog="Exit codes: 0 done; 1 something failed, and the output says what; 2 the input is wrong "
    "and nothing was done; 130 interrupted, and the same command goes on.",
)  # fmt: skip
for command in (look.doctor, look.presets, run.train, run.ablate, analysis.analyze,
                read.tables, read.figures, read.report, read.show, read.diff):  # fmt: skip
    app.command()(command)
app.add_typer(gate.app, name="perf")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass
