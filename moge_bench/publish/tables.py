"""Records to tables: one line per distinct run, every number with spread, n and baseline.

Markdown is printed; Markdown, LaTeX and CSV are written. Nothing here trains or times.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd

from moge_bench.runs.record import Record, RecordStore, label, write_atomically
from moge_bench.study.contrasts import Sample, describe, half_width_95, paired_difference
from moge_bench.study.frame import (
    SHOWN,
    UNKNOWN,
    Line,
    axes_that_matter,
    baseline_of,
    collect_lines,
    line_label,
    quartiles,
    values_by_seed,
)
from moge_bench.study.grid import SPEED_METRICS, SPLIT_METRICS, Grid
from moge_bench.study.published import find_published


def table_rows(grid: Grid, store: RecordStore) -> list[dict[str, Any]]:
    """Return one dict per line: axes, then for every metric its figures, all numbers unrounded."""
    return _rows(grid, collect_lines(grid, store))


def _rows(grid: Grid, lines: list[Line]) -> list[dict[str, Any]]:
    return [_row(line, baseline_of(line, lines, grid), grid) for line in lines]


def _row(line: Line, baseline: Line | None, grid: Grid) -> dict[str, Any]:
    row: dict[str, Any] = axes_that_matter(line.point, grid)
    row["n"] = len(line.records)
    row["failed"], row["missing"] = len(line.failed), line.missing
    row["baseline"] = line_label(baseline, grid) if baseline else UNKNOWN
    for metric, split, name in _figures(grid):
        values = values_by_seed(line, metric, split, grid.file.name)
        other = values_by_seed(baseline, metric, split, grid.file.name) if baseline else {}
        if metric in SPEED_METRICS:
            row[name] = next(iter(values.values()), None)
            for field, value in quartiles(line, metric, grid.file.name).items():
                row[f"{name}.{field}"] = value
            row[f"{name}.ratio"] = _ratio(values, other)
        else:
            _add_sample(row, name, describe(list(values.values())))
            if metric in SPLIT_METRICS:
                _add_difference(row, name, paired_difference(values, other))
    row["published"] = _published(line, grid)
    return row


def _figures(grid: Grid) -> list[tuple[str, str, str]]:
    """Return (metric, split, name in a row) of every figure the table shows."""
    table = grid.file.table
    return [
        (metric, split, f"{metric}.{split}" if split else metric)
        for metric in table.metrics
        for split in (table.splits if metric in SPLIT_METRICS else ("",))
    ]


def _published(line: Line, grid: Grid) -> str:
    name = grid.file.table.published.get(line.point.configs[0].method)
    return (find_published(name).cell(grid.file.table.metrics) if name else None) or UNKNOWN


def _add_sample(row: dict[str, Any], name: str, sample: Sample | None) -> None:
    row[f"{name}.mean"] = sample.mean if sample else None
    row[f"{name}.spread"] = sample.spread if sample else None


def _add_difference(row: dict[str, Any], name: str, sample: Sample | None) -> None:
    row[f"{name}.difference"] = sample.mean if sample else None
    row[f"{name}.difference_half_width_95"] = half_width_95(sample) if sample else None


def _ratio(values: dict[int, float], baseline: dict[int, float]) -> float | None:
    if not values or not baseline:
        return None
    return next(iter(values.values())) / next(iter(baseline.values()))


def write_tables(grid: Grid, store: RecordStore, folder: Path) -> str:
    """Write folder/NAME.{md,tex,csv} and return the Markdown."""
    lines = collect_lines(grid, store)
    rows = _rows(grid, lines)
    shown = pd.DataFrame([_display(row, grid) for row in rows])
    markdown = "\n".join(
        [
            f"# {grid.file.name}", "", markdown_line(grid.file.question), "",
            shown.map(markdown_cell).to_markdown(index=False, disable_numparse=True), "",
            *notes(grid, lines), "",
        ]
    )  # fmt: skip
    write_atomically(folder / f"{grid.file.name}.md", markdown)
    write_atomically(folder / f"{grid.file.name}.tex", _latex(shown, grid))
    write_atomically(folder / f"{grid.file.name}.csv", _csv(rows))
    return markdown


def markdown_cell(text: str) -> str:
    """Return ``text`` on one line, with what would end a cell of a Markdown table escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def markdown_line(text: str) -> str:
    """Return ``text`` as one paragraph: no line break, no mark that starts another kind of line."""
    line = " ".join(text.split())
    return f"\\{line}" if line.startswith(("#", "|", ">", "- ", "* ", "+ ", "```")) else line


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex(shown: pd.DataFrame, grid: Grid) -> str:
    # Escaped first: a name may hold what LaTeX reads as a command. ± is ours, in numbers alone.
    plain = shown.map(lambda cell: " ".join(cell.split()))
    body = plain.to_latex(index=False, escape=True).replace("±", r"$\pm$")
    question = " ".join(grid.file.question.split())  # a line break would end the comment
    return f"% {grid.file.name}: {question}\n{body}"


def _display(row: dict[str, Any], grid: Grid) -> dict[str, str]:
    """Round a row for people: mean ± spread, difference ± half width, ratio."""
    shown = {axis: str(row[axis]) for axis in (*grid.file.table.rows, *grid.file.table.columns)}
    absent = [f"{row[state]} {state}" for state in ("failed", "missing") if row[state]]
    shown["n"] = str(row["n"]) + (f" ({', '.join(absent)})" if absent else "")
    for metric, split, name in _figures(grid):
        title, unit, digits = SHOWN[metric]
        title = f"{split.replace('_', ' ')} {title}".strip()
        heading = f"{title} ({unit})" if unit else title
        if metric in SPEED_METRICS:
            shown[heading] = _number(row[name], digits)
            if row.get(f"{name}.lower") is not None:
                low, high = (_number(row[f"{name}.{q}"], digits) for q in ("lower", "upper"))
                shown[heading] += f" [{low}; {high}]"
            shown[f"{title} ratio"] = _number(row[f"{name}.ratio"], 3)
        elif metric in SPLIT_METRICS:
            shown[heading] = _number(row[f"{name}.mean"], digits, row[f"{name}.spread"])
            difference, half_width = f"{name}.difference", f"{name}.difference_half_width_95"
            shown[f"{title} vs baseline"] = _number(
                row[difference], digits, row[half_width], sign="+"
            )
        else:
            spread = row[f"{name}.spread"] or None  # counts of parameters have none
            shown[heading] = _number(row[f"{name}.mean"], digits, spread)
    shown["baseline"], shown["published"] = row["baseline"], row["published"]
    return shown


def _number(
    value: float | None, digits: int, spread: float | None = None, *, sign: str = ""
) -> str:
    if value is None:
        return UNKNOWN
    text = f"{value:{sign},.{digits}f}"
    return text if spread is None else f"{text} ± {spread:,.{digits}f}"


def notes(grid: Grid, lines: list[Line]) -> list[str]:
    """Return the lines under a table: what the numbers mean and what they were measured on."""
    records = [record for line in lines for record in line.records.values()]
    published = [find_published(name) for name in sorted(grid.file.table.published.values())]
    found = [
        f"Accuracy and loss: mean ± sample standard deviation over n seeds (of "
        f"{len(grid.file.base.seeds)}); difference from the baseline: paired by seed, mean ± half "
        "width of its 95 % interval (Student's t). Memory and speed: one serial pass after "
        "training, interleaved over all lines; median [quartiles] of the timed steps, ratio to "
        "the baseline's. Peak memory: live tensor bytes of a training step; peak RSS: of the "
        "process that trained.",
        "Published: "
        + "".join(f"{row.name}: {row.source}. " for row in published)
        + "No figure of the MoGE paper for this setting is known; a dash is not a zero.",
    ]
    missing = sum(line.missing for line in lines)
    if missing:
        found.append(f"**Incomplete:** {missing} runs have no record yet.")
    for record in (record for line in lines for record in line.failed.values()):
        assert record.error is not None
        reason = " ".join(f"{record.error.type}: {record.error.message}".split())
        found.append(f"**Failed:** {label(record.config)} ({record.hash}): {reason}.")
    for name, values in _conditions(records, grid.file.name).items():
        mixed = " **(mixed: compare with care)**" if name in _MUST_AGREE and len(values) > 1 else ""
        found.append(f"{name}: {', '.join(values) or UNKNOWN}{mixed}.")
    return [line for note in found for line in (note, "")][:-1]


_MUST_AGREE = ("Machine", "Threads", "Torch", "Backends", "Build of the speed pass")


def _conditions(records: list[Record], grid: str) -> dict[str, list[str]]:
    def distinct(values: Any) -> list[str]:
        return sorted({str(value) for value in values if value})

    speeds = [record.speed[grid] for record in records if grid in record.speed]
    return {
        "Machine": distinct(
            f"{record.machine.get('cpu')}, {record.machine.get('cores')} cores, {record.device}"
            for record in records
        ),
        "Threads": distinct(record.threads for record in records),
        "Torch": distinct(record.versions.get("torch") for record in records),
        "Backends": distinct(
            ", ".join(f"{op}: {name}" for op, name in record.backends.items()) for record in records
        ),
        "Build of the speed pass": distinct(
            (speed.build or {}).get("source_hash") for speed in speeds
        ),
        "Commits": distinct(
            f"{(record.code.commit or 'none')[:10]}{' (dirty)' if record.code.dirty else ''}"
            for record in records
        ),
        "Trained": distinct(record.started[:10] for record in records),
    }
