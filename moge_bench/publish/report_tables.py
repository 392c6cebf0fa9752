"""The sortable tables of the report: each cell with its unrounded value and the arms behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moge_bench.publish.captions import Captions
from moge_bench.publish.cells import difference_cell, ratio_cell, value_cell
from moge_bench.publish.layout import axis_title, key_label
from moge_bench.publish.numbers import Number, Shown
from moge_bench.publish.render import MAX_COLUMNS
from moge_bench.publish.sentences import (
    contrasts_said,
    declaration,
    estimate_cell,
    probability,
    smallest_cell,
    subject,
    verdict_cell,
    verdict_words,
)
from moge_bench.study.answer import Answer
from moge_bench.study.contrasts import LEVEL, Sample, holm
from moge_bench.study.estimate import Estimate
from moge_bench.study.frame import Results
from moge_bench.study.verdicts import Tested

_GROUPS = (
    ("Quality", ("quality",)),
    ("Routing", ("routing",)),
    ("Analyses", ("analysis",)),
    ("Cost and size", ("speed", "memory", "size")),
)
_MAX_AXES = 2


@dataclass(frozen=True)
class Datum:
    """A cell.

    Attributes:
        text: as it is shown.
        sort: what its column is ordered by; None comes last.
        arms: arm_ids of the runs that the number is made of.
        bold: for what survives the correction.
        link: where a cell of words leads.
        study: whose arms they are, where that is not the table's study.
    """

    text: str
    sort: float | str | None = None
    arms: tuple[str, ...] = ()
    bold: bool = False
    link: str = ""
    study: str = ""


@dataclass(frozen=True)
class Sortable:
    """A table of at most six columns; the first ``words`` columns are words.

    ``study`` is whose arms its cells name.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Datum, ...], ...]
    caption: str
    words: int
    study: str = ""

    def __post_init__(self) -> None:
        assert len(self.header) <= MAX_COLUMNS, self.header
        assert all(len(row) == len(self.header) for row in self.rows), self.title


def study_tables(results: Results, numbers: Sequence[Shown], captions: Captions) -> list[Sortable]:
    """Return every number of the study that is known, kind by kind; a row an arm."""
    tables: list[Sortable] = []
    for title, kinds in _GROUPS:
        columns = [
            column
            for shown in numbers
            if shown.metric.kind in kinds
            and any(number.sample is not None for number in shown.numbers.values())
            for column in _columns(shown, captions)
        ]  # fmt: skip
        tables += _tables(title, columns, results)
    return tables


@dataclass(frozen=True)
class _Column:
    heading: str
    shown: Shown
    write: Callable[[Number], Datum]
    caption: str


def _columns(shown: Shown, captions: Captions) -> Iterator[_Column]:
    """Yield the columns of one metric. A speed is of the pass that timed the arms, not of runs."""
    numbers, timed = shown.numbers.values(), shown.metric.source == "speed"
    link = f"speed/{captions.results.study.name}.json" if timed else ""

    def value(number: Number) -> Datum:
        sample = number.sample
        arms = (number.arm.entry.arm_id,)
        known = sample is not None and not timed
        return Datum(
            value_cell(number, shown).text, _mean(sample), arms if known else (),
            link=link if sample else "",
        )  # fmt: skip

    def difference(number: Number) -> Datum:
        cell, found = difference_cell(number, shown), number.difference
        return Datum(cell.text, _mean(found), _both(number) if found else (), cell.bold)

    def ratio(number: Number) -> Datum:
        known = number.ratio is not None
        return Datum(
            ratio_cell(number).text, number.ratio, _both(number) if known and not timed else (),
            link=link if known else "",
        )  # fmt: skip

    yield _Column(shown.heading, shown, value, captions.value(shown))
    if any(number.difference is not None for number in numbers):
        unit = f" ({shown.difference_unit})" if shown.difference_unit else ""
        said = captions.difference(shown)
        yield _Column(f"{shown.title}: difference{unit}", shown, difference, said)
    elif shown.metric.kind != "size" and any(number.ratio is not None for number in numbers):
        yield _Column(f"{shown.title}: ratio", shown, ratio, captions.ratio())


def _mean(sample: Sample | None) -> float | None:
    return sample.mean if sample is not None else None


def _both(number: Number) -> tuple[str, ...]:
    assert number.baseline is not None
    return number.arm.entry.arm_id, number.baseline.entry.arm_id


def _tables(title: str, columns: Sequence[_Column], results: Results) -> Iterator[Sortable]:
    table = results.study.table
    axes = [
        axis for axis in (*table.rows, *table.columns)
        if len({str(arm.shown[axis]) for arm in results.arms}) > 1
    ] or [(*table.rows, *table.columns)[0]]  # fmt: skip
    joined = len(axes) > _MAX_AXES
    header = ["arm"] if joined else [axis_title(axis) for axis in axes]
    width = MAX_COLUMNS - len(header)
    for start in range(0, len(columns), width):
        part, rows = columns[start : start + width], []
        for arm in results.arms:
            key = tuple(str(arm.shown[axis]) for axis in axes)
            words = [key_label(axes, key)] if joined else list(key)
            cells = [column.write(column.shown.numbers[arm.entry.arm_id]) for column in part]
            rows.append((*(Datum(word, _number_or_text(word)) for word in words), *cells))
        many = f" ({start // width + 1} of {-(-len(columns) // width)})"
        yield Sortable(
            title + (many if len(columns) > width else ""),
            (*header, *(column.heading for column in part)), tuple(rows),
            " ".join(dict.fromkeys(column.caption for column in part)), len(header),
            results.study.name,
        )  # fmt: skip


def _number_or_text(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def contrasts_table(answer: Answer) -> Sortable | None:
    """Return the declared contrasts of a study; None where there is none."""
    rows = [_contrast("primary", answer.primary)] if answer.primary is not None else []
    rows += [_contrast("secondary", each) for each in answer.secondary]
    if not rows:
        return None
    said = contrasts_said(len(answer.secondary))
    header = ("contrast", "estimate", "p", "equivalence", "smallest effect", "verdict")
    return Sortable("Declared contrasts", header, tuple(rows), said, 1, answer.results.study.name)


def arms_of(found: Estimate) -> tuple[str, ...]:
    """Return the arm_ids of all cells that entered, each once."""
    ids = [arm_id for c in found.entered for arm_id in (c.pair.arm_id, c.pair.baseline_id)]
    return tuple(dict.fromkeys(ids))


def _contrast(kind: str, tested: Tested) -> tuple[Datum, ...]:
    found, contrast = tested.found, tested.found.contrast
    arms = arms_of(found) if contrast is not None else ()
    smallest = tested.smallest_effect
    words = declaration(kind, found.declared)
    return (
        Datum(words, words),
        Datum(estimate_cell(found), _mean(contrast.sample if contrast is not None else None), arms,
              tested.p is not None and tested.p < LEVEL),
        Datum(probability(tested.p), tested.p, arms if tested.p is not None else ()),
        Datum(probability(tested.equivalence_p), tested.equivalence_p,
              arms if tested.equivalence_p is not None else ()),
        Datum(smallest_cell(tested), smallest, arms if smallest is not None else ()),
        Datum(verdict_words(tested), verdict_words(tested)),
    )  # fmt: skip


def overview_table(answers: Sequence[Answer]) -> Sortable:
    """Return every study: its question, and what its primary contrast came to."""
    declared = [answer.primary for answer in answers if answer.primary is not None]
    adjusted = iter(holm([each.p for each in declared]))
    rows = []
    for answer in answers:
        primary = answer.primary
        name, question = answer.results.study.name, answer.results.study.question
        head = (Datum(name, name, link=f"#{name}"), Datum(question, question))
        if primary is None:
            rows.append((*head, *(Datum("-"),) * 3, Datum("nothing declared", "~")))
            continue
        contrast, p = primary.found.contrast, next(adjusted)
        word = verdict_cell(primary)
        what = f"{subject(primary.found.declared)}, {estimate_cell(primary.found)}"
        value = contrast.sample.mean if contrast is not None else None
        arms = arms_of(primary.found) if contrast is not None else ()
        rows.append(
            (*head, Datum(what, value, arms, study=name),
             Datum(probability(primary.p), primary.p),
             Datum(probability(p), p, bold=p is not None and p < LEVEL), Datum(word, word))
        )  # fmt: skip
    said = (
        "One declared contrast a study: estimate [95 % interval, Student's t] in the unit that its "
        "section names, n seeds; p of its own paired t test, which its verdict is by, and after "
        f"Holm's correction over the {len(declared)} studies that declare one, bold where below "
        "0.05."
    )
    header = ("study", "question", "primary contrast", "p", "p, Holm", "verdict")
    return Sortable("Answers", header, tuple(rows), said, 3)
