"""All answers of a results folder on one page: answers.md and answers.json.

The primary contrasts of all studies as one family, and what studies share, pooled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moge_bench.publish.answers import interval_values, rounded
from moge_bench.publish.captions import results_folder
from moge_bench.publish.render import Cell, Table, markdown_line, to_markdown
from moge_bench.publish.sentences import (
    NOTHING_DECLARED,
    estimate_cell,
    probability,
    quantity,
    subject,
    verdict_cell,
    with_interval,
)
from moge_bench.study.answer import Answer, in_order
from moge_bench.study.contrasts import LEVEL, holm
from moge_bench.study.pooled import Pooled, pool
from moge_bench.study.verdicts import Tested
from moge_bench.system import write_atomically


@dataclass(frozen=True)
class Shared:
    """A contrast that several studies of one preset and one data set declare, pooled."""

    studies: tuple[str, ...]
    example: Tested
    preset: str
    data: str
    pooled: Pooled


def write_overview(answers: Sequence[Answer], root: Path) -> None:
    """Write root/answers.md and answers.json of the studies in the results folder ``root``."""
    answers = in_order(answers)
    declared = [(each, each.primary) for each in answers if each.primary is not None]
    adjusted = holm([tested.p for _, tested in declared])
    shared = pooled_contrasts(answers)
    silent = [each.results.study.name for each in answers if each.primary is None]
    values = {
        "schema": 1,
        "studies": [_study(a, t, p) for (a, t), p in zip(declared, adjusted, strict=True)],
        "pooled": [_values(each) for each in shared],
        "without_primary": silent,
    }
    text = json.dumps(rounded(values), indent=1, ensure_ascii=False)
    write_atomically(root / "answers.json", text + "\n")
    made = f"Made by: moge-bench tables --results {results_folder(root / 'studies' / 'any')}."
    lines = ["# Answers", ""]
    if declared:
        rows = [_row(a, t, p) for (a, t), p in zip(declared, adjusted, strict=True)]
        lines.append(to_markdown(_table(rows, len(declared), made)))
    if shared:
        lines.append(to_markdown(_pooled_table(shared, made)))
    if silent:
        lines.append(markdown_line(f"{', '.join(silent)}: {NOTHING_DECLARED}"))
    write_atomically(root / "answers.md", "\n".join(lines).rstrip("\n") + "\n")


def pooled_contrasts(answers: Sequence[Answer]) -> list[Shared]:
    """Return what two studies or more declare alike, of one preset and one data set, pooled.

    A trend is none of these: its cells are weighed against each other, not averaged.
    """
    groups: dict[tuple[Any, ...], list[tuple[str, Tested]]] = {}
    for answer in answers:
        tested, study = answer.primary, answer.results.study
        if tested is None or tested.found.declared.over is not None:
            continue
        declared = tested.found.declared
        settings = {
            (record.settings.preset, record.settings.data.name) for record in tested.found.records
        }
        if len(settings) == 1:
            what = (
                declared.metric, declared.where, declared.axis, str(declared.contrast),
                str(declared.at),
            )  # fmt: skip
            groups.setdefault((*settings.pop(), *what), []).append((study.name, tested))
    found = []
    for (preset, data, *_), members in groups.items():
        pooled = pool([tested.found for _, tested in members])
        if len(members) > 1 and pooled is not None:
            names = tuple(name for name, _ in members)
            found.append(Shared(names, members[0][1], preset, data, pooled))
    return found


def _study(answer: Answer, tested: Tested, adjusted: float | None) -> dict[str, Any]:
    return {
        "study": answer.results.study.name,
        "question": answer.results.study.question,
        "verdict": tested.verdict,
        "complete": tested.found.complete,
        **interval_values(tested.found.contrast),
        "unit": tested.found.declared.unit,
        "margin": tested.found.declared.margin,
        "n": tested.found.n,
        "p": tested.p,
        "p_over_studies": adjusted,
    }


def _values(shared: Shared) -> dict[str, Any]:
    declared = shared.example.found.declared
    return {
        "studies": shared.studies,
        "preset": shared.preset,
        "data": shared.data,
        "metric": declared.metric,
        "split": declared.where or None,
        "axis": declared.axis,
        "contrast": declared.contrast,
        "unit": declared.unit,
        **vars(shared.pooled),
    }


def _row(answer: Answer, tested: Tested, adjusted: float | None) -> tuple[Cell, ...]:
    declared = tested.found.declared
    return (
        Cell(answer.results.study.name),
        Cell(f"{subject(declared)}, {quantity(declared)}"),
        Cell(estimate_cell(tested.found), adjusted is not None and adjusted < LEVEL),
        Cell(probability(tested.p)),
        Cell(probability(adjusted)),
        Cell(verdict_cell(tested)),
    )


def _table(rows: Sequence[tuple[Cell, ...]], count: int, made: str) -> Table:
    return Table(
        "answers", "Primary contrasts", "quality",
        ("study", "contrast", "estimate", "p", "p, Holm", "verdict"), tuple(rows),
        "Each study's one declared contrast: estimate [95 % interval, Student's t], n seeds; p of "
        "its own paired t test, which its verdict is by, and after Holm's correction over the "
        f"{count} studies that declare one, those without a p counted, bold where below 0.05. "
        f"Margins, what is missing: studies/NAME/answer.md. {made}",
        2,
    )  # fmt: skip


def _pooled_table(shared: Sequence[Shared], made: str) -> Table:
    rows = []
    for each in shared:
        declared, pooled = each.example.found.declared, each.pooled
        text = with_interval(pooled.estimate, pooled.low, pooled.high, declared)
        what = f"{subject(declared)}, {quantity(declared)}; {each.preset}, {each.data}"
        counts = f"{pooled.pairs} pairs, {pooled.seeds} seeds"
        cells = (what, ", ".join(each.studies), text, counts, probability(pooled.p))
        rows.append(tuple(map(Cell, cells)))
    return Table(
        "pooled", "Over studies that ask the same", "quality",
        ("contrast", "studies", "estimate", "n", "p"), tuple(rows),
        "Mean over all pairs of runs, each once [95 % interval, covariance clustered by seed]; "
        f"not one of the declared contrasts, and not corrected. {made}", 2,
    )  # fmt: skip
