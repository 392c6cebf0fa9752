"""answer.md: a study's question, its answer in a sentence, and the contrasts that were declared."""

from __future__ import annotations

from pathlib import Path

from moge_bench.publish.captions import results_folder
from moge_bench.publish.conditions import fixed_settings
from moge_bench.publish.render import Cell, Table, escape_markdown, markdown_line, to_markdown
from moge_bench.publish.sentences import (
    answer_sentence,
    contrasts_said,
    declaration,
    estimate_cell,
    place,
    probability,
    sample_cell,
    smallest_cell,
    subject,
    verdict_words,
)
from moge_bench.study.answer import Answer
from moge_bench.study.contrasts import LEVEL
from moge_bench.study.estimate import Estimate
from moge_bench.study.verdicts import Tested

_MAX_LISTED = 10


def answer_page(answer: Answer, folder: Path) -> str:
    """Return answer.md; ``folder`` is where it will stand."""
    study, primary = answer.results.study, answer.primary
    lines = [f"# Answer: {study.name}", "", markdown_line(study.question), ""]
    lines += [f"**{escape_markdown(answer_sentence(answer))}**", ""]
    if primary is not None or answer.secondary:
        lines.append(to_markdown(_contrasts(answer, folder)))
    if primary is not None:
        found = primary.found
        if len(found.cells) > 1:
            lines.append(to_markdown(_cells(found)))
        lines += [markdown_line(_declaration(answer, len(found.records))), ""]
        lines += _missing(found)
    return "\n".join(lines).rstrip("\n") + "\n"


def _contrasts(answer: Answer, folder: Path) -> Table:
    rows = [] if answer.primary is None else [_row("primary", answer.primary)]
    rows += [_row("secondary", each) for each in answer.secondary]
    said = (
        f"{contrasts_said(len(answer.secondary))} Verdicts: docs/studies.md. Fixed: "
        f"{fixed_settings(answer.results)}. Made by: moge-bench tables "
        f"--results {results_folder(folder)}; run ids behind every number: answer.json."
    )
    header = ("contrast", "estimate", "p", "equivalence", "smallest effect", "verdict")
    return Table("answer", "Declared contrasts", "quality", header, tuple(rows), said, 1)


def _row(kind: str, tested: Tested) -> tuple[Cell, ...]:
    found = tested.found
    return (
        Cell(declaration(kind, found.declared)),
        Cell(estimate_cell(found), tested.p is not None and tested.p < LEVEL),
        Cell(probability(tested.p)),
        Cell(probability(tested.equivalence_p)),
        Cell(smallest_cell(tested)),
        Cell(verdict_words(tested)),
    )  # fmt: skip


def _cells(primary: Estimate) -> Table:
    declared, rows = primary.declared, []
    for cell in primary.cells:
        text, n = "-", 0
        if cell.contrast is not None:
            sample = cell.contrast.sample
            text, n = sample_cell(sample, declared), sample.n
        weight = "left out" if cell.weight is None else f"{cell.weight:+.3f}"
        rows.append((Cell(place(cell)), Cell(text), Cell(str(n)), Cell(weight)))
    unit = f" ({declared.number.contrast_unit})" if declared.number.contrast_unit else ""
    return Table(
        "cells", f"Cells of the primary contrast: {subject(declared)}", "quality",
        ("cell", f"difference{unit}", "n", "weight"), tuple(rows),
        "A cell is a pair of arms that differ in one axis alone; difference [95 % interval, "
        "Student's t], n seeds, not corrected. The primary contrast is their sum, weighted, seed "
        "by seed.", 1,
    )  # fmt: skip


def _declaration(answer: Answer, count: int) -> str:
    """Say when the study was declared, beside its ``count`` records."""
    when = "at a time that the manifest does not tell"
    if answer.declared is not None:
        older = answer.older
        after = f"after {older} of its {count} records were started"
        before = f"before any of its {count} records was started"
        when = f"{answer.declared}, {after if older else before}"
    digest = answer.results.study.digest
    said = f"Declared (digest {digest}): {when}."
    for each in answer.results.declarations:
        if each.digest != digest:
            said += f" An earlier declaration (digest {each.digest}): {each.declared}."
    for change in answer.results.changes:
        said += f" At {change.changed} {'; '.join(change.what)}."
    others = answer.secondary_records
    if others:
        older = answer.older_of(others)
        said += f" Of the {len(others)} records of secondary contrasts alone, {older} were older."
    return said


def _missing(primary: Estimate) -> list[str]:
    """Return a list of runs that give no number."""
    lines = [
        f"* {escape_markdown(f'{each.why}: {each.arm} seed {each.seed} ({each.run_id})')}"
        for each in primary.missing[:_MAX_LISTED]
    ]
    if len(primary.missing) > _MAX_LISTED:
        lines.append(f"* {len(primary.missing) - _MAX_LISTED} more: see answer.json")
    return lines
