"""Commands that look at what is here: ``doctor`` and ``presets``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from moge_bench.cli.common import out, user_errors
from moge_bench.cli.complete import complete_preset


def doctor() -> None:
    """Say what is built, which backends run, which data are found; exit 1 if anything is broken."""
    from moge_bench.doctor import run_checks

    checks = run_checks()
    for check in checks:
        mark = {True: "ok    ", False: "BROKEN", None: "      "}[check.ok]
        out.print(f"{mark} {check.name:<28} {escape(check.detail)}")
    raise typer.Exit(any(check.ok is False for check in checks))


def presets(
    which: Annotated[
        str | None,
        typer.Argument(
            help="Only those with this in their name, or that match it as a glob (with * or ?).",
            autocompletion=complete_preset,
        ),
    ] = None,
) -> None:
    """List presets: what each is, its size, what it should reach, what it costs.

    FLOPs a token: the matrix products of a forward pass. "at most": the vocabulary is known when
    the data are read.
    """
    with user_errors():
        from moge_bench.config import nearest
        from moge_bench.models.cost import cost_of
        from moge_bench.perf.names import matches
        from moge_bench.presets import PRESETS, resolve

        chosen = [preset for preset in PRESETS.values() if matches(preset.name, which)]
        if not chosen:
            raise ValueError(f"no preset is called {which!r}{nearest(str(which), list(PRESETS))}")
        for preset in chosen:
            cost = cost_of(resolve(preset.name))
            most = "" if cost.exact else "at most "
            out.print(f"[bold]{preset.name}[/bold] ({preset.method}): {escape(preset.about)}")
            out.print(
                f"    size:    {most}{cost.parameters:,} parameters, {cost.active_parameters:,} "
                f"active, {cost.flops_per_token:,} FLOPs a token forward"
            )
            out.print(f"    reaches: {escape(preset.reaches)}")
            out.print(f"    costs:   {escape(preset.cost)}")
