"""Commands that read records: ``tables``, ``figures``, ``show`` and ``diff``. They need no data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from moge_bench.cli.common import RESULTS, ResultsDir, err, out, user_errors
from moge_bench.cli.terminal import reader_is_gone

if TYPE_CHECKING:
    from moge_bench.study.frame import Results


def tables(results: ResultsDir = RESULTS) -> None:
    """Rebuild and print the tables of every study in the results folder."""
    _for_every_study(results, lambda name: print_tables(results, name))


def figures(results: ResultsDir = RESULTS) -> None:
    """Redraw the figures of every study in the results folder."""

    def draw(name: str) -> None:
        from moge_bench.publish.figures import write_figures

        for path in write_figures(_collect(results, name), results / "studies" / name):
            out.print(escape(f"written: {path}"))

    _for_every_study(results, draw)


def _for_every_study(results: Path, work: Callable[[str], None]) -> None:
    """Do ``work`` for each study; one that cannot be read does not stop the others."""
    broken = 0
    with user_errors():
        from moge_bench.study.manifest import study_paths

        paths = study_paths(results)
    for path in paths:
        try:
            work(path.parent.name)
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) and reader_is_gone():
                raise  # ``main`` ends quietly
            broken += 1
            err.print(f"moge-bench: study {path.parent.name}: {escape(str(error))}")
    if broken:
        raise typer.Exit(1)


def print_tables(results: Path, study: str) -> None:
    """Write the tables of one study beside its manifest, and print them."""
    from moge_bench.publish.tables import write_tables

    folder = results / "studies" / study
    sys.stdout.write(write_tables(_collect(results, study), folder) + "\n")
    out.print(escape(f"written: {folder}"))


def _collect(results: Path, study: str) -> Results:
    from moge_bench.runs.speed import SpeedStore
    from moge_bench.runs.store import RecordStore
    from moge_bench.study.frame import collect
    from moge_bench.study.manifest import manifest_path, read_manifest

    manifest = read_manifest(manifest_path(results, study))
    return collect(manifest, RecordStore(results), SpeedStore(results))


def show(run_id: str, results: ResultsDir = RESULTS) -> None:
    """Print one record: what ran, how well, on what. The first digits of its id are enough."""
    with user_errors():
        from moge_bench.runs.record import to_json
        from moge_bench.runs.store import RecordStore

        record = to_json(RecordStore(results).find(run_id))
        for name in ("curves", "routing"):
            record[name] = f"{len(record[name])} entries; see the file"
        print(json.dumps(record, indent=1, ensure_ascii=False))


def diff(a: str, b: str, results: ResultsDir = RESULTS) -> None:
    """Print what differs between two records: settings, code, machine, then results."""
    with user_errors():
        from moge_bench.runs.record import to_json
        from moge_bench.runs.store import RecordStore
        from moge_bench.study.manifest import differing

        store = RecordStore(results)
        left, right = (to_json(store.find(run_id)) for run_id in (a, b))
        for name in ("summary", "curves", "routing"):
            del left[name], right[name]
        for record in (left, right):
            record["metrics"] = {f"{m['name']}.{m['split']}": m["value"] for m in record["metrics"]}
        for path in differing(left, right):
            print(f"{path}: {_at(left, path)!r} | {_at(right, path)!r}")


def _at(values: object, path: str) -> object:
    while isinstance(values, dict):
        head = next((n for n in values if path == n or path.startswith(f"{n}.")), None)
        if head is None:
            return None
        values, path = values[head], path[len(head) + 1 :]
        if not path:
            return values
    return values
