"""All that a results folder says on one page, report.html: answers, figures, tables, provenance.

Self-contained: no network, no file beside it but the records, tables and documents that it links
to. From records and analyses alone; the same files give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moge_bench.analysis.store import AnalysisStore
from moge_bench.methods import METHODS
from moge_bench.publish.captions import Captions, results_folder
from moge_bench.publish.comparisons import arm_name
from moge_bench.publish.conditions import Conditions, problems
from moge_bench.publish.figures import svg_figures, svg_of
from moge_bench.publish.maps import NO_MAPS
from moge_bench.publish.numbers import shown_numbers
from moge_bench.publish.panels import INK, MUTED, PAPER
from moge_bench.publish.report_tables import (
    Sortable,
    arms_of,
    contrasts_table,
    overview_table,
    study_tables,
)
from moge_bench.publish.rewards import draw_rewards, loss_numbers
from moge_bench.publish.sentences import answer_sentence
from moge_bench.runs.store import RecordStore
from moge_bench.study.answer import Answer, in_order
from moge_bench.study.frame import Results
from moge_bench.system import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
_FILES = ("answer.md", "answer.json", "tables.md", "table.csv", "runs.csv", "manifest.json")
_OVER_ALL = ("answers.md", "answers.json", "systems.md", "perf/history.html")
_FIGURES = ("answer", "maps")
_LIGHTER = 0.4  # of white in a method's colour on a dark page
Draw = Callable[[Answer, Path, AnalysisStore, tuple[str, ...]], list[tuple[str, str]]]


@dataclass(frozen=True)
class ArmRuns:
    """The records behind one arm: (seed, run_id, status, link), the link "" where there is none."""

    arm_id: str
    label: str
    runs: tuple[tuple[int, str, str, str], ...]


@dataclass(frozen=True)
class Section:
    """One study on the page."""

    name: str
    question: str
    verdict: str
    complete: bool
    sentence: str
    arms: tuple[str, ...]
    warnings: tuple[str, ...]
    figures: tuple[Markup, ...]
    notes: tuple[str, ...]
    tables: tuple[Sortable, ...]
    caption: str
    links: tuple[tuple[str, str], ...]
    records: tuple[ArmRuns, ...]


def write_report(answers: Sequence[Answer], root: Path, draw: Draw = svg_figures) -> Path:
    """Write root/report.html on the studies of the results folder ``root``; return its path.

    Those with an answer come first (``in_order``).
    """
    store, analyses = RecordStore(root), AnalysisStore(root)
    answers = in_order(answers)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    folder = results_folder(root / "studies" / "any")
    page = environment.get_template("report.html").render(
        sections=[_section(answer, root, store, analyses, draw) for answer in answers],
        overview=overview_table(answers),
        links=_links(root, "", _OVER_ALL),
        loss=loss_numbers(),
        rewards=themed(svg_of(draw_rewards), "rewards", "the loss of uniform and one-hot scores"),
        command=f"moge-bench report --results {folder}",
        docs=_docs(folder),
        style=_asset("report.css"),
        script=_asset("report.js"),
        colours=[(_variable(m.colour), m.colour, _lighter(m.colour)) for m in METHODS.values()],
    )
    path = root / "report.html"
    write_atomically(path, page)
    return path


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _docs(folder: str) -> str:
    """Return the way from the page to the documents, "" outside a checkout's results."""
    inside = folder.partition("/")[0] == "results"
    return f"{'../' * (folder.count('/') + 1)}docs" if inside else ""


def _section(
    answer: Answer, root: Path, store: RecordStore, analyses: AnalysisStore, draw: Draw
) -> Section:
    results, name = answer.results, answer.results.study.name
    folder, primary = root / "studies" / name, answer.primary
    conditions = Conditions(results)
    captions = Captions(results, conditions, folder)
    drawn = draw(answer, folder, analyses, _FIGURES)
    notes = [] if any(each.startswith("answer") for each, _ in drawn) else ["No run is finished."]
    if not any(each.startswith("maps") for each, _ in drawn):
        notes.append(NO_MAPS)
    declared = contrasts_table(answer)
    tables = study_tables(results, shown_numbers(results), captions)
    return Section(
        name=name,
        question=results.study.question,
        verdict=primary.verdict if primary is not None else "nothing declared",
        complete=primary is None or primary.found.complete,
        sentence=answer_sentence(answer),
        arms=arms_of(primary.found) if primary is not None else (),
        warnings=(*conditions.warnings(), *problems(results)),
        figures=tuple(
            themed(svg, f"{name}-{each}", f"{each} of the study {name}") for each, svg in drawn
        ),
        notes=tuple(notes),
        tables=(*([declared] if declared is not None else []), *tables),
        caption=captions.tail("report"),
        links=tuple(_links(folder, f"studies/{name}/", _FILES)),
        records=tuple(_records(results, root, store)),
    )


def _links(folder: Path, way: str, files: Sequence[str]) -> list[tuple[str, str]]:
    return [(file, f"{way}{file}") for file in files if (folder / file).exists()]


def _records(results: Results, root: Path, store: RecordStore) -> list[ArmRuns]:
    found = []
    for arm in results.arms:
        runs = []
        for seed, run_id in sorted(arm.entry.runs.items()):
            record = arm.records.get(seed) or arm.unfinished.get(seed)
            link = store.path(run_id).relative_to(root).as_posix() if record is not None else ""
            runs.append((seed, run_id, record.status if record is not None else "missing", link))
        found.append(ArmRuns(arm.entry.arm_id, arm_name(results, arm), tuple(runs)))
    return found


def themed(svg: str, prefix: str, title: str) -> Markup:
    """Return an SVG of matplotlib for a place inside the page: its theme's colours, own ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    names = {INK: "--ink", MUTED: "--muted", PAPER: "--card"}
    names |= {method.colour: _variable(method.colour) for method in METHODS.values()}
    for colour, name in names.items():
        svg = svg.replace(colour.lower(), f"var({name})")
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{prefix}-", svg)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None, head
    label = Markup.escape(title)
    start = f'<svg class="figure" role="img" aria-label="{label}" {box[0]}'
    return Markup(f'{start} xmlns:xlink="http://www.w3.org/1999/xlink">{body}')


def _variable(colour: str) -> str:
    return f"--c{colour[1:].lower()}"


def _lighter(colour: str) -> str:
    """Return a colour that a dark page shows as well."""
    parts: list[Any] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(p + (255 - p) * _LIGHTER):02x}" for p in parts)
