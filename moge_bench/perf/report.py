"""Benchmark rows as JSON, CSV and a Markdown table; nothing here measures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from moge_bench.perf.rows import FAILURES, OK, WRONG, Row
from moge_bench.system import write_atomically

LEGEND = """\
Forward + backward, float32 unless the case says otherwise; all candidates of a case interleaved
in one process, in an order drawn anew for every other round and reversed for the next. `ratio`
is the candidate's time over that of ours (of `ours_gated`, which multiplies by the same N x N
gate, for the routers that contain one), paired by round, with a 95 % bootstrap interval: above 1
ours is faster. `GB/s` divides the least bytes the job must move (router: logits read twice,
gradient written once, and per choice weight and expert written and read and one gradient read;
softmax: five passes; copy: two) by the median; `of copy` is that rate over the copy's. Cases
whose group does not fit the map with border `valid` use `torus` and say so in their name. A row
that is not `ok` has no speed.
"""


MOST_TABLES = 30


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(row: Row) -> list[str]:
    spread = "-"
    if row.lower_quartile_ms is not None:
        spread = f"{row.lower_quartile_ms:.3f} - {row.upper_quartile_ms:.3f}"
    ratio = "-"
    if row.ratio_to_ours is not None:
        ratio = f"{row.ratio_to_ours:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
    error = max(row.errors.values(), default=None)
    rate = row.gb_per_s if row.gb_per_s is not None else row.gflop_per_s
    mismatches = "-" if row.mismatches is None else f"{row.mismatches} ({row.ties} ties)"
    return [
        row.candidate, row.status, row.kernel or "-", _number(row.median_ms, 3), spread, ratio,
        _number(rate, 1), _number(row.share_of_copy, 2),
        "-" if error is None else f"{error:.1e}", mismatches,
    ]  # fmt: skip


def overview(rows: list[Row]) -> list[str]:
    """Return one line a router case: the times of others over ours, and their least at the end.

    `authors` is the convolution, `plain` the fastest PyTorch formulation of the whole job, whether
    compiled or not, `softmax` forward and backward of torch.softmax alone, `copy` a copy of the
    logits.
    """
    others = {
        "authors": ("authors_conv2d",),
        "plain": ("authors_conv2d", "matrix_product", "authors_conv2d_compiled",
                  "matrix_product_compiled"),
        "softmax": ("torch_softmax",),
        "copy": ("copy",),
    }  # fmt: skip
    lines = [f"| case | ours, ms | {' | '.join(others)} |", "|---" * (2 + len(others)) + "|"]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for case in dict.fromkeys(row.case for row in rows if row.fields.get("op") == "router"):
        mine = {row.candidate: row for row in rows if row.case == case}
        cells = []
        for name, candidates in others.items():
            found = [mine[c].ratio_to_ours for c in candidates if c in mine]
            least = min((ratio for ratio in found if ratio is not None), default=None)
            cells.append(_number(least, 2))
            ratios[name] += [] if least is None else [least]
        ours = mine["ours"].median_ms if "ours" in mine else None
        lines.append(f"| {case} | {_number(ours, 3)} | {' | '.join(cells)} |")
    least_of_all = [_number(min(values, default=None), 2) for values in ratios.values()]
    return [*lines, f"| least | - | {' | '.join(least_of_all)} |", ""]


def markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """Return the report: the facts, every router case in a line, and one table a case.

    Beyond ``MOST_TABLES`` cases the tables are left to the CSV file, not the failures.
    """
    title = [f"- {name}: {value}" for name, value in facts.items()]
    lines = ["# Router and layer benchmark", "", *title, "", LEGEND, *overview(rows)]
    if len({row.case for row in rows}) > MOST_TABLES:
        failed = [f"- {r.case} `{r.candidate}` {r.status}: {r.detail}" for r in failures(rows)]
        return "\n".join([*lines, f"{len(failed)} failed rows:", "", *failed, ""])
    for case in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == case]
        unit = "GFLOP/s" if mine[0].gflop_per_s is not None else "GB/s"
        head = ["candidate", "status", "kernel", "median ms", "quartiles ms", "ratio", unit,
                "of copy", "worst error", "top-k mismatches"]  # fmt: skip
        lines += [f"## {case}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(_line(row)) + " |" for row in mine]
        lines += [""]
        lines += [f"- `{r.candidate}` {r.status}: {r.detail}" for r in mine if r.status != OK]
        lines += [""]
    return "\n".join(lines)


def write(rows: list[Row], facts: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Write ``stem``.json, .csv and .md into ``folder``; return their paths."""
    data = [row.to_dict() for row in rows]
    text = json.dumps({"facts": facts, "rows": data}, indent=1, sort_keys=True) + "\n"
    paths = [folder / f"{stem}{suffix}" for suffix in (".json", ".csv", ".md")]
    write_atomically(paths[0], text)
    table = io.StringIO()
    flat = [
        {k: v for k, v in row.items() if not isinstance(v, dict)}
        | row["fields"]
        | {f"{name}_error": value for name, value in row["errors"].items()}
        for row in data
    ]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(paths[1], table.getvalue())
    write_atomically(paths[2], markdown(rows, facts))
    return paths


def earlier(path: Path, **same: Any) -> dict[str, Any] | None:
    """Return the report at ``path`` if its entries equal those given, else None.

    With the facts among them: what the same code has measured on the same machine, to go on with.
    A damaged report is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    wanted = json.loads(json.dumps(same))
    return found if all(found.get(name) == value for name, value in wanted.items()) else None


def resume(folder: Path, stem: str, facts: dict[str, Any]) -> list[Row]:
    """Return the rows of an earlier run of the same code on the same machine, or none.

    A run of the whole grid takes an hour; one that was cut short goes on where it stopped.
    """
    found = earlier(folder / f"{stem}.json", facts=facts)
    return [Row(**row) for row in found["rows"]] if found else []


def failures(rows: list[Row]) -> list[Row]:
    """Return the rows that did not work: wrong, fallen back, or broken."""
    return [row for row in rows if row.status in FAILURES]


def is_others(row: Row) -> bool:
    """Say whether a failed row is not for us to mend: another's candidate that misses its bound."""
    return row.status == WRONG and not row.candidate.startswith("ours")


def instruction_table(per_token: dict[str, float], commit: str) -> str:
    """Return instructions per token of every kernel region, against N/64 times N = 64's."""
    lines = [
        f"# Instructions per token, commit {commit}", "",
        "Counted under callgrind (one thread, fixed inputs; baseline and AVX2, since valgrind "
        "3.19 has no AVX-512). `scaling` is the figure over N/64 times that of N=64 at the same k "
        "and h: 1.00 is proportional to N. h = 3u: groups of 3x3 with unit energy.", "",
        "| instruction set | pass | N | k | h | instructions per token | scaling |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    totals: dict[tuple[str, str, str, str, str], float] = {}
    for label, value in per_token.items():
        isa, direction, n, k, h, _ = label.split()
        totals[isa, direction, n, k, h] = value
        if direction == "backward":
            totals[isa, "both", n, k, h] = value + totals[isa, "forward", n, k, h]
    for (isa, direction, n, k, h), value in totals.items():
        base = totals.get((isa, direction, "64", k, h))
        scaling = f"{value / base / (int(n) / 64):.2f}" if base else "-"
        lines.append(f"| {isa} | {direction} | {n} | {k} | {h} | {value:.1f} | {scaling} |")
    return "\n".join(lines) + "\n"
