"""A study to tables: Markdown for people, LaTeX for papers, CSV unrounded with the run ids.

The answer of the study stands at their head, and beside them in answer.json and answer.md.

A table shows one metric on one split, at most six columns wide. ``table.columns`` of a study
pivots: row axes down, column axes across, differences and ratios in a table of their own; without
it a row is an arm. Nothing here trains or times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from moge_bench.publish.answers import write_answer
from moge_bench.publish.captions import Captions
from moge_bench.publish.cells import NONE, difference_cell, ratio_cell, value_cell
from moge_bench.publish.conditions import Conditions, problems
from moge_bench.publish.layout import Key, Layout, axis_title, key_label, lay_out
from moge_bench.publish.numbers import Number, Shown, arm_frame, shown_numbers
from moge_bench.publish.render import (
    LATEX_NEEDS,
    MAX_COLUMNS,
    Cell,
    Table,
    escape_markdown,
    markdown_line,
    to_latex,
    to_markdown,
)
from moge_bench.publish.sentences import answer_sentence
from moge_bench.study.answer import Answer
from moge_bench.study.frame import Results, run_frame
from moge_bench.study.published import find_published
from moge_bench.system import write_atomically

_KINDS = {
    "quality": "Quality", "routing": "Routing", "analysis": "Analyses", "speed": "Speed",
    "memory": "Memory", "size": "Size",
}  # fmt: skip


def write_tables(answer: Answer, folder: Path) -> str:
    """Write folder/tables.{md,tex}, table.csv, runs.csv and the answer; return the Markdown."""
    results = answer.results
    numbers = shown_numbers(results)
    conditions = Conditions(results)
    tables = make_tables(results, numbers, Captions(results, conditions, folder))
    said = answer_sentence(answer)
    warnings = [*conditions.warnings(), *problems(results), *_unmeasured(results, numbers)]
    markdown = _markdown(results, said, tables, warnings, conditions)
    write_answer(answer, numbers, folder)
    write_atomically(folder / "tables.md", markdown)
    write_atomically(folder / "tables.tex", _latex(results, said, tables, warnings))
    write_atomically(folder / "table.csv", _csv(arm_frame(results, numbers)))
    write_atomically(folder / "runs.csv", _csv(run_frame(results)))
    return markdown


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")


def make_tables(results: Results, numbers: list[Shown], captions: Captions) -> list[Table]:
    """Return every table of the study, kind by kind as in ``_KINDS``, each in the order asked."""
    made = _Pivot(results, captions) if results.study.table.columns else _Rows(results, captions)
    order = list(_KINDS)
    return [
        table
        for shown in sorted(numbers, key=lambda each: order.index(each.metric.kind))
        if _says_something(results, shown)
        for table in made.tables(shown)
    ]


class _Rows:
    """Tables with an arm a row: the axes that vary, the value, the difference or ratio."""

    def __init__(self, results: Results, captions: Captions) -> None:
        self.results, self.captions = results, captions
        axes = results.study.table.rows
        varying = [a for a in axes if len({str(arm.shown[a]) for arm in results.arms}) > 1]
        self.axes = tuple(varying) or axes[:1]

    def tables(self, shown: Shown) -> Iterator[Table]:
        """Yield the one table of ``shown``."""
        columns: list[tuple[str, Callable[[Number], Cell]]] = [
            (shown.heading, lambda number: value_cell(number, shown))
        ]
        said = [self.captions.value(shown)]
        if _has(shown, "difference"):
            columns.append((_difference_heading(shown), lambda n: difference_cell(n, shown)))
            said.append(self.captions.difference(shown))
        elif _has(shown, "ratio") and shown.metric.kind != "size":
            columns.append(("ratio", ratio_cell))
            said.append(self.captions.ratio())
        published = _published(self.results, shown)
        if published and len(columns) < MAX_COLUMNS - 1:
            columns.append(("published", lambda n: Cell(published.get(n.arm.method, NONE))))
            said.append(_sources(self.results, published))
        joined = len(self.axes) + len(columns) > MAX_COLUMNS
        header = ["arm"] if joined else [axis_title(axis) for axis in self.axes]
        rows = []
        for arm in self.results.arms:
            number = shown.numbers[arm.entry.arm_id]
            key = tuple(str(arm.shown[axis]) for axis in self.axes)
            words = [key_label(self.axes, key)] if joined else list(key)
            rows.append((*map(Cell, words), *(write(number) for _, write in columns)))
        yield Table(
            _name(shown), _title(shown), shown.metric.kind,
            (*header, *(name for name, _ in columns)), tuple(rows),
            " ".join([*said, self.captions.tail()]), len(header),
        )  # fmt: skip


class _Pivot:
    """Tables with row axes down and column axes across."""

    def __init__(self, results: Results, captions: Captions) -> None:
        self.results, self.captions = results, captions
        table = results.study.table
        self.layout: Layout = lay_out(results.arms, results.study.axes, table.rows, table.columns)
        self.cells = {place: arm.entry.arm_id for place, arm in self.layout.arms.items()}
        keys = self.layout.rows
        self.shown_axes = [
            i for i in range(len(table.rows)) if len({key[i] for key in keys}) > 1
        ] or [0]

    def tables(self, shown: Shown) -> Iterator[Table]:
        """Yield the values, then the differences or the ratios."""
        published = _published(self.results, shown)
        said = f" {_sources(self.results, published)}" if published else ""
        if "method" not in self.results.study.table.columns:  # no column to stand in
            said += "".join(f" Published for {m}: {text}." for m, text in published.items())
            published = {}
        unit = f" ({shown.metric.unit})" if shown.metric.unit else ""
        yield from self._split(
            shown, _name(shown), _title(shown), unit,
            lambda number: value_cell(number, shown), self.captions.value(shown) + said, published,
        )  # fmt: skip
        if _has(shown, "difference"):
            unit = f" ({shown.difference_unit})" if shown.difference_unit else ""
            yield from self._split(
                shown, f"{_name(shown)}-difference",
                f"{_title(shown)}: difference from the baseline", unit,
                lambda number: difference_cell(number, shown), self.captions.difference(shown),
            )  # fmt: skip
        elif _has(shown, "ratio") and shown.metric.kind != "size":
            yield from self._split(
                shown, f"{_name(shown)}-ratio", f"{_title(shown)}: ratio to the baseline",
                " (ratio)", ratio_cell, self.captions.ratio(),
            )  # fmt: skip

    def _split(
        self, shown: Shown, name: str, title: str, unit: str, write: Callable[[Number], Cell],
        caption: str, published: Mapping[str, str] | None = None,
    ) -> Iterator[Table]:  # fmt: skip
        """Yield the pivot, in parts where it is wider than a table may be.

        ``published``, a value a method, makes the last row.
        """
        table = self.results.study.table
        grid = {
            column: [
                write(shown.numbers[self.cells[row, column]])
                if (row, column) in self.cells
                else Cell(NONE)
                for row in self.layout.rows
            ]
            for column in self.layout.columns
        }
        # A column of dashes (dense has no baseline) says nothing.
        columns = [c for c in self.layout.columns if any(cell.text != NONE for cell in grid[c])]
        joined = len(self.shown_axes) > MAX_COLUMNS - 2
        axes = [table.rows[i] for i in self.shown_axes]
        header = ["arm"] if joined else [axis_title(axis) for axis in axes]
        words = []
        for row in self.layout.rows:
            key = tuple(row[i] for i in self.shown_axes)
            words.append([key_label(axes, key)] if joined else list(key))
        width = MAX_COLUMNS - len(header)
        parts = [columns[i : i + width] for i in range(0, len(columns), width)]
        for place, part in enumerate(parts, start=1):
            rows = [
                (*map(Cell, words[i]), *(grid[column][i] for column in part))
                for i in range(len(self.layout.rows))
            ]
            if published:
                given = [Cell(self._published_in(column, published)) for column in part]
                rows.append((Cell("published"), *[Cell("")] * (len(header) - 1), *given))
            many = f" ({place} of {len(parts)})" if len(parts) > 1 else ""
            yield Table(
                name + (f"-{place}" if many else ""), title + many, shown.metric.kind,
                (*header, *(key_label(table.columns, column) + unit for column in part)),
                tuple(rows), f"{caption}{self._repeated(part)} {self.captions.tail()}", len(header),
            )  # fmt: skip

    def _published_in(self, column: Key, published: Mapping[str, str]) -> str:
        return published.get(column[self.results.study.table.columns.index("method")], NONE)

    def _repeated(self, columns: list[Key]) -> str:
        """Say which arms of these columns stand in several cells."""
        shown = [arm for (_, column), arm in self.layout.arms.items() if column in columns]
        counts = Counter(arm.entry.arm_id for arm in shown)
        several = {arm.method: None for arm in shown if counts[arm.entry.arm_id] > 1}
        if not several:
            return ""
        return f" Repeated along axes that make no difference to it: {', '.join(several)}."


def _name(shown: Shown) -> str:
    return f"{shown.split}-{shown.metric.name}".strip("-").replace("_", "-")


def _title(shown: Shown) -> str:
    return shown.heading[:1].upper() + shown.heading[1:]


def _says_something(results: Results, shown: Shown) -> bool:
    """Return whether a table of ``shown`` has a number: before the first run, a published one."""
    return _is_measured(results, shown) or (
        not _has_run(results) and bool(_published(results, shown))
    )


def _is_measured(results: Results, shown: Shown) -> bool:
    """Return whether any arm has a value, or a word on why not: a column of dashes says nothing."""
    cells = [value_cell(number, shown) for number in shown.numbers.values()]
    return _has_run(results) and any(cell.text != NONE for cell in cells)


def _has_run(results: Results) -> bool:
    return any(arm.records or arm.unfinished for arm in results.arms)


def _unmeasured(results: Results, numbers: list[Shown]) -> list[str]:
    """Say which figures no record or speed pass has."""
    titles = [shown.title for shown in numbers if not _is_measured(results, shown)]
    return [f"Not measured: {', '.join(titles)}."] if titles else []


def _has(shown: Shown, what: str) -> bool:
    return any(getattr(number, what) is not None for number in shown.numbers.values())


def _difference_heading(shown: Shown) -> str:
    return f"difference ({shown.difference_unit})" if shown.difference_unit else "difference"


def _published(results: Results, shown: Shown) -> dict[str, str]:
    """Return method -> published system and its values of this metric, where there are any."""
    found = {}
    for method, name in results.study.table.published.items():
        cells = [row.cell((shown.metric.name,)) for row in find_published(name)]
        if known := [cell for cell in cells if cell is not None]:
            found[method] = f"{name}: {'; '.join(known)}"
    return found


def _sources(results: Results, methods: Iterable[str]) -> str:
    """Return where the published values of ``methods`` stand."""
    names = dict.fromkeys(results.study.table.published[method] for method in methods)
    sources = {
        f"Published: {name}: {row.source}." for name in names for row in find_published(name)
    }
    return " ".join(sorted(sources))


def _markdown(
    results: Results, said: str, tables: list[Table], warnings: list[str], conditions: Conditions
) -> str:
    lines = [f"# {results.study.name}", "", markdown_line(results.study.question), ""]
    lines += [f"**Answer:** {escape_markdown(said)}", ""]
    for warning in warnings:
        lines += [f"**{escape_markdown(warning).replace(': ', ':** ', 1)}", ""]
    kind = ""
    for table in tables:
        if table.kind != kind:
            kind = table.kind
            lines += [f"## {_KINDS[kind]}", ""]
        lines.append(to_markdown(table))
    if said_of := conditions.lines():
        lines += ["## Conditions", "", *(f"* {escape_markdown(line)}" for line in said_of), ""]
    return "\n".join(lines)


def _latex(results: Results, said: str, tables: list[Table], warnings: list[str]) -> str:
    lines = [LATEX_NEEDS, f"{results.study.name}: {results.study.question}", f"Answer: {said}"]
    lines += warnings
    head = [f"% {' '.join(line.lstrip('% ').split())}" for line in lines]
    return "\n".join([*head, *(to_latex(table, results.study.name) for table in tables)])
