"""The answer of a study: answer.json, with the runs behind every number, and answer.md.

From records alone, and from incomplete ones: what is missing is said. Floats are written with nine
digits, so that the last bits of a library make no other file.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from moge_bench.publish.answer_page import answer_page
from moge_bench.publish.conditions import code_name
from moge_bench.publish.numbers import Shown
from moge_bench.publish.sentences import answer_sentence, place, sentence
from moge_bench.study.answer import Answer
from moge_bench.study.contrasts import Contrast
from moge_bench.study.declared import DeclaredContrast
from moge_bench.study.estimate import CellResult
from moge_bench.study.verdicts import Tested
from moge_bench.system import write_atomically

_DIGITS = 9


def write_answer(answer: Answer, numbers: list[Shown], folder: Path) -> None:
    """Write folder/answer.json and answer.md; ``numbers`` are those of the study's tables."""
    text = json.dumps(rounded(_values(answer, numbers)), indent=1, ensure_ascii=False)
    write_atomically(folder / "answer.json", text + "\n")
    write_atomically(folder / "answer.md", answer_page(answer, folder))


def rounded(value: Any) -> Any:
    """Return nested JSON values with floats of ``_DIGITS`` digits."""
    if isinstance(value, dict):
        return {str(name): rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def interval_values(contrast: Contrast | None) -> dict[str, float | None]:
    """Return a contrast's estimate and interval by name, None where there is none."""
    if contrast is None:
        return dict.fromkeys(("estimate", "low", "high"))
    sample = contrast.sample
    return {"estimate": sample.mean, "low": sample.low, "high": sample.high}


def _values(answer: Answer, numbers: list[Shown]) -> dict[str, Any]:
    study, primary = answer.results.study, answer.primary
    return {
        "schema": 1,
        "study": study.name,
        "question": study.question,
        "verdict": primary.verdict if primary is not None else None,
        "sentence": answer_sentence(answer),
        "complete": primary.found.complete if primary is not None else None,
        "declaration": _declaration(answer),
        "primary": _contrast(primary) if primary is not None else None,
        "secondary": [_contrast(each) for each in answer.secondary],
        "differences": _differences(answer, numbers),
        "code": _code(answer),
    }


def _declaration(answer: Answer) -> dict[str, Any]:
    """Return when the study was declared, and how its records stand to that."""
    records = answer.primary.found.records if answer.primary is not None else []
    return {
        "digest": answer.results.study.digest,
        "declared": answer.declared,
        "records": len(records),
        "records_before": answer.older,
        "first_record": min((record.started for record in records), default=None),
        "earlier": [each.model_dump() for each in answer.results.declarations[:-1]],
        "changes": [each.model_dump() for each in answer.results.changes],
    }


def _contrast(tested: Tested) -> dict[str, Any]:
    found, declared = tested.found, tested.found.declared
    contrast, equivalence = found.contrast, found.equivalence
    sample = contrast.sample if contrast is not None else None
    return {
        **_declared(declared),
        "verdict": tested.verdict,
        "sentence": sentence(tested),
        "unit": declared.unit,
        "better": declared.number.better,
        **interval_values(contrast),
        "p": sample and sample.p,
        "p_holm": tested.p,
        "family": tested.family,
        "equivalence": equivalence
        and {
            "p": equivalence.p,
            "p_holm": tested.equivalence_p,
            "low": equivalence.low,
            "high": equivalence.high,
        },
        "n": found.n,
        "seeds_planned": found.planned,
        "smallest_effect": tested.smallest_effect,
        "needed_n": tested.needed_n,
        "complete": found.complete,
        "seeds": dict(contrast.values) if contrast is not None else {},
        "cells": [_cell(cell) for cell in found.cells],
        "missing": [
            {"run_id": m.run_id, "arm": m.arm, "seed": m.seed, "why": m.why} for m in found.missing
        ],
    }


def _declared(declared: DeclaredContrast) -> dict[str, Any]:
    values = declared.model_dump(mode="json", exclude_none=True)
    if declared.over is None or declared.between is not None:
        del values["scale"]
    return {**values, "split": declared.where or None}


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "at": cell.pair.at,
        "place": place(cell),
        "weight": cell.weight,
        "n": cell.contrast.sample.n if cell.contrast is not None else 0,
        **interval_values(cell.contrast),
        "arms": [cell.pair.arm_id, cell.pair.baseline_id],
        "runs": {
            seed: [ours.run_id, theirs.run_id] for seed, (ours, theirs) in cell.records.items()
        },
    }


def _differences(answer: Answer, numbers: list[Shown]) -> list[dict[str, Any]]:
    """Return the family of the study's table: the primary metric's, or the first quality's."""
    paired = [shown for shown in numbers if shown.metric.paired]
    name = answer.primary.found.declared.metric if answer.primary is not None else None
    name = name or next((shown.metric.name for shown in paired), None)
    found = []
    for shown in (each for each in paired if each.metric.name == name):
        for arm_id, number in shown.numbers.items():
            if number.contrast is None or number.baseline is None:
                continue
            sample, other = number.contrast.sample, number.baseline
            seeds = list(number.contrast.values)
            found.append(
                {
                    "metric": name, "split": shown.split or None, "unit": shown.difference_unit,
                    "arm": number.arm.label, "baseline": other.label,
                    "arms": [arm_id, other.entry.arm_id],
                    **interval_values(number.contrast),
                    "p": sample.p, "p_holm": number.p_holm, "family": shown.family,
                    "n": sample.n, "smallest_effect": number.contrast.smallest_effect,
                    "runs": {s: [number.arm.entry.runs[s], other.entry.runs[s]] for s in seeds},
                }
            )  # fmt: skip
    return found


def _code(answer: Answer) -> dict[str, int]:
    """Return how many of the records that entered were made by which code."""
    tested = [*([answer.primary] if answer.primary is not None else []), *answer.secondary]
    records = {record.run_id: record for each in tested for record in each.found.records}
    return dict(sorted(Counter(map(code_name, records.values())).items()))
