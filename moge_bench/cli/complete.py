"""What the shell offers after <TAB>: presets, methods and the runs of a results folder."""

from __future__ import annotations

from pathlib import Path

import typer

from moge_bench.cli.common import RESULTS


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin so."""
    from moge_bench.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that begin so."""
    from moge_bench.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the records that begin so, in the folder that --results names so far."""
    root = Path(ctx.params.get("results") or RESULTS)
    ids = [path.stem for path in (root / "runs").glob("??/*.json")]
    return sorted(run_id for run_id in ids if run_id.startswith(incomplete))
