"""The command ``analyze``. It needs no data and trains nothing."""

from __future__ import annotations

from collections import Counter

import typer
from rich.markup import escape

from moge_bench.cli.common import RESULTS, ResultsDir, err, out, user_errors


def analyze(results: ResultsDir = RESULTS) -> None:
    """Analyse what finished runs learned, from their probes; a run is analysed once."""
    outcomes: Counter[str] = Counter()
    with user_errors():
        from moge_bench.analysis.analyze import analyze as analyze_all
        from moge_bench.runs.store import check_layout
        from moge_bench.system import check_writable

        check_layout(results)
        check_writable(results / "analysis")
        for report in analyze_all(results):
            outcomes[report.outcome] += 1
            if report.outcome == "written":
                out.print(escape(f"analysed: {report.name}"))
            elif report.reason:
                err.print(f"moge-bench: {escape(f'{report.name}: {report.reason}')}")
    written, there = outcomes["written"], outcomes["there already"]
    out.print(escape(f"{results / 'analysis'}: {written} made, {there} there already"))
    if not outcomes:
        err.print(
            f"moge-bench: {escape(str(results / 'probes'))} has no probe: a run leaves one where "
            "it was trained; copy that folder with the records"
        )
    if outcomes["failed"]:
        raise typer.Exit(1)
