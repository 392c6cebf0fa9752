"""Commands that read records: tables, figures, report, show and diff. They need no data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from moge_bench.cli.common import (
    RESULTS,
    ResultsDir,
    err,
    out,
    print_markdown,
    sentence,
    user_errors,
)
from moge_bench.cli.complete import complete_run
from moge_bench.cli.terminal import reader_is_gone

if TYPE_CHECKING:
    from moge_bench.study.answer import Answer
    from moge_bench.study.frame import Results


def tables(results: ResultsDir = RESULTS) -> None:
    """Rebuild and print the answer and the tables of every study in the results folder."""
    answers: list[Answer] = []

    def overview() -> None:
        from moge_bench.publish.overview import write_overview
        from moge_bench.publish.systems import write_systems

        write_overview(answers, results)
        write_systems([each.results for each in answers], results)
        for name in ("answers.md", "systems.md"):
            out.print(escape(f"written: {results / name}"))

    _for_every_study(results, lambda name: answers.append(print_tables(results, name)), overview)


def figures(results: ResultsDir = RESULTS) -> None:
    """Redraw the figures of every study in the results folder."""

    def draw(name: str) -> None:
        from moge_bench.analysis.store import AnalysisStore
        from moge_bench.publish.figures import write_figures
        from moge_bench.study.answer import make_answer

        answer, folder = make_answer(_collect(results, name)), results / "studies" / name
        for path in write_figures(answer, folder, AnalysisStore(results)):
            out.print(escape(f"written: {path}"))

    _for_every_study(results, draw)


def report(results: ResultsDir = RESULTS) -> None:
    """Write report.html: every answer with its figure and tables, and the runs behind a number."""
    answers: list[Answer] = []

    def answer(name: str) -> None:
        from moge_bench.study.answer import make_answer

        answers.append(make_answer(_collect(results, name)))

    def write() -> None:
        from moge_bench.publish.report import write_report

        out.print(escape(f"written: {write_report(answers, results)}"))

    _for_every_study(results, answer, write)


def _for_every_study(
    results: Path, work: Callable[[str], None], after: Callable[[], None] | None = None
) -> None:
    """Do ``work`` for each study, then ``after``; one that cannot be read stops no other."""
    broken = 0
    with user_errors():
        from moge_bench.runs.store import check_layout
        from moge_bench.study.manifest import study_paths

        check_layout(results)
        paths = study_paths(results)
    for path in paths:
        try:
            work(path.parent.name)
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) and reader_is_gone():
                raise  # ``main`` ends quietly
            broken += 1
            err.print(f"moge-bench: study {path.parent.name}: {escape(sentence(error))}")
    if after is not None:
        with user_errors():
            after()
    if broken:
        raise typer.Exit(1)


def print_tables(results: Path, study: str) -> Answer:
    """Write tables and answer of one study beside its manifest, and print them, the answer last."""
    from moge_bench.publish.sentences import answer_sentence
    from moge_bench.publish.tables import write_tables
    from moge_bench.study.answer import make_answer

    folder = results / "studies" / study
    answer = make_answer(_collect(results, study))
    print_markdown(write_tables(answer, folder))
    out.print(escape(f"written: {folder}"))
    out.print(escape(f"{study}: {answer_sentence(answer)}"))
    return answer


def _collect(results: Path, study: str) -> Results:
    from moge_bench.runs.speed import SpeedStore
    from moge_bench.runs.store import RecordStore
    from moge_bench.study.frame import collect
    from moge_bench.study.manifest import manifest_path, read_manifest

    manifest = read_manifest(manifest_path(results, study))
    return collect(manifest, RecordStore(results), SpeedStore(results))


AsJson = Annotated[bool, typer.Option("--json", help="Print the file's own JSON.")]
RunId = Annotated[
    str, typer.Argument(help="The first digits are enough.", autocompletion=complete_run)
]


def show(run_id: RunId, results: ResultsDir = RESULTS, as_json: AsJson = False) -> None:
    """Print one record: what ran, how well, on what."""
    with user_errors():
        from moge_bench.publish.record_view import show_record
        from moge_bench.runs.record import to_json
        from moge_bench.runs.store import RecordStore

        record = RecordStore(results).find(run_id)
        if as_json:
            sys.stdout.write(json.dumps(to_json(record), indent=1, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(show_record(record))


def diff(a: RunId, b: RunId, results: ResultsDir = RESULTS) -> None:
    """Print what differs between two records: settings, code, machine, then results."""
    with user_errors():
        from moge_bench.publish.record_view import compare_records
        from moge_bench.runs.store import RecordStore

        store = RecordStore(results)
        sys.stdout.write(compare_records(store.find(a), store.find(b)))
