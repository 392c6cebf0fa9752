"""The command line, ``moge-bench``. Imported by nobody; heavy imports wait for their command."""

from __future__ import annotations

from typing import Annotated

import typer

from moge_bench import __version__
from moge_bench.cli import analysis, gate, look, read, run
from moge_bench.cli.terminal import forgiving

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="Topographic group-norm routing for Mixture-of-Experts models: benchmarks and ablations.",
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


def main() -> None:
    """Entry point of the console script."""
    with forgiving():
        app()
