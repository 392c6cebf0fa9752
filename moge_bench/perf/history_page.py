"""The history of speeds as one page of HTML that needs nothing else: a menu of machines, a small
chart a case with its interval, hover for commit and figure, and a table of each case's last change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from moge_bench.perf.chart import Point, chart, figure
from moge_bench.perf.history import Entry
from moge_bench.perf.names import title
from moge_bench.perf.statistics import ACCEPTED, REGRESSION

Commits = Mapping[str, tuple[int, str]]  # commit -> (place in the log, oldest first, and subject)
SMALLEST_CHANGE = 0.001  # of an exact count: less than that is a constant, not a kernel

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; margin: 2rem auto; max-width: 75rem;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.3rem; } h2 { font-size: 1.1rem; }
select { font: inherit; padding: 0.2rem; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { text-align: left; padding: 0.15rem 0.8rem 0.15rem 0; border-bottom: 1px solid #dfe3e8; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 0.85rem; font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 10px; fill: #5a6472; }
.frame { fill: #f6f7f9; } .line { fill: none; stroke: #31688e; stroke-width: 1.5; }
.interval { stroke: #31688e; stroke-opacity: 0.35; stroke-width: 4; }
.pass { fill: #31688e; } .regression { fill: #c62828; } .accepted { fill: #e08e00; }
.cleared { fill: #fff; stroke: #c62828; stroke-width: 1.5; } .target { fill: transparent; }
.point:hover .mark { stroke: #1c2430; stroke-width: 1.5; }
.slower { color: #c62828; } .note { color: #5a6472; }
.wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #14181d; color: #e4e7eb; } .frame { fill: #1e242b; }
  td, th { border-color: #333b45; } .note, svg text { color: #9aa4b1; fill: #9aa4b1; }
  .line, .interval { stroke: #6fa8d6; } .pass { fill: #6fa8d6; } .cleared { fill: #14181d; }
  .slower, .regression { color: #ff7b72; fill: #ff7b72; }
}
"""
SCRIPT = """
const menu = document.getElementById("machine");
const show = () => document.querySelectorAll("section").forEach(
  (section, index) => { section.hidden = index !== menu.selectedIndex; });
menu.addEventListener("change", show);
show();
"""
LEGEND = (
    "Lower is better. A triangle is a regression, a diamond a slowdown that was accepted, a ring "
    "an alert that measuring again took back. Bars are quartiles; counts, of instructions or "
    "bytes or modules, are exact and have none. Figures of different machines are never joined."
)


def value(entry: Entry) -> float:
    """Return what is drawn of an entry: instructions per token, the median in ms, or its value."""
    if "instructions" in entry:
        return float(entry["instructions"]) / float(entry["num_tokens"])
    return float(entry["median_ms"] if "median_ms" in entry else entry["value"])


def unit(entry: Entry) -> str:
    """Return the unit of ``value``."""
    if "unit" in entry:
        return str(entry["unit"])
    return "instructions per token" if "instructions" in entry else "ms"


def interval(entry: Entry) -> tuple[float, float] | None:
    """Return the quartiles: of an exact figure it twice, None of a single time."""
    for lower, upper in (("lower_quartile_ms", "upper_quartile_ms"),
                         ("lower_quartile", "upper_quartile")):  # fmt: skip
        if lower in entry:
            return float(entry[lower]), float(entry[upper])
    exact = "instructions" in entry or entry.get("exact")
    return (value(entry), value(entry)) if exact else None


def last_change(series: Sequence[Entry]) -> int | None:
    """Return the index of the last entry that differs from the one before it; None without one.

    Exact figures differ from 0.1 % on; times where the quartiles of the two do not overlap, or, of
    entries without quartiles, never.
    """
    for index in range(len(series) - 1, 0, -1):
        before, after = interval(series[index - 1]), interval(series[index])
        if before is None or after is None:
            continue
        apart = after[0] > before[1] or after[1] < before[0]
        if apart and abs(value(series[index]) / value(series[index - 1]) - 1) >= SMALLEST_CHANGE:
            return index
    return None


def by_machine(history: Sequence[Entry], commits: Commits) -> dict[str, dict[str, list[Entry]]]:
    """Return machine -> case -> its entries in the order of ``commits``.

    A commit that is not in ``commits`` (a branch that is gone) stands before them, as it was added.
    """
    result: dict[str, dict[str, list[Entry]]] = {}
    for entry in sorted(history, key=lambda e: commits.get(e["commit"], (-1, ""))[0]):
        result.setdefault(entry["machine"], {}).setdefault(entry["case"], []).append(entry)
    return dict(sorted(result.items()))


def _point(entry: Entry, commits: Commits) -> Point:
    mark = entry.get("verdict", "pass")
    if mark not in (REGRESSION, ACCEPTED):
        mark = "cleared" if "cleared" in entry else "pass"
    words = f"{entry['commit'][:10]} {commits.get(entry['commit'], (0, ''))[1]}\n"
    words += f"{figure(value(entry))} {unit(entry)}"
    if "ratio_to_base" in entry:
        words += f", {entry['ratio_to_base']:.4f} of {entry['base'][:10]}: {entry['verdict']}"
    if "cleared" in entry:
        words += f"; first looked {entry['cleared']:.3f}, not when measured again"
    if mark == ACCEPTED:
        words += f"\n{entry['reason']}"
    low, high = interval(entry) or (value(entry), value(entry))
    return Point(value(entry), low, high, mark, words)


def _row(case: str, series: Sequence[Entry], commits: Commits) -> str:
    last, index = series[-1], last_change(series)
    change, commit = "-", "none seen" if len(series) > 1 else "measured once"
    if interval(last) is None:
        commit = "no interval was kept"
    if index is not None:
        ratio = value(series[index]) / value(series[index - 1])
        sort = " class='slower'" if ratio > 1 else ""
        change = f"<span{sort}>{100 * (ratio - 1):+.1f} %</span>"
        name = series[index]["commit"]
        commit = escape(f"{name[:10]} {commits.get(name, (0, ''))[1]}")
    return (
        f"<tr><td>{escape(title(case))}</td><td class='number'>{figure(value(last))}</td>"
        f"<td>{unit(last)}</td><td class='number'>{change}</td><td>{commit}</td></tr>"
    )


def _section(machine: str, cases: Mapping[str, Sequence[Entry]], commits: Commits) -> str:
    count = _num_commits(cases)
    charts = [
        f"<figure><figcaption>{escape(title(case))}: {unit(series[0])}</figcaption>"
        f"{chart([_point(entry, commits) for entry in series], unit(series[0]))}</figure>"
        for case, series in cases.items()
    ]
    rows = [_row(case, series, commits) for case, series in cases.items()]
    return (
        f"<section aria-label='{escape(machine)}'><h2>{escape(machine)}: {count} commits</h2>\n"
        f"<div class='charts'>{''.join(charts)}</div>\n<h2>The last change of each case</h2>\n"
        "<div class='wide'><table><tr><th>case</th><th class='number'>now</th><th>unit</th>"
        "<th class='number'>change</th><th>at</th></tr>\n"
        + "\n".join(rows)
        + "</table></div></section>"
    )


def _num_commits(cases: Mapping[str, Sequence[Entry]]) -> int:
    return len({entry["commit"] for series in cases.values() for entry in series})


def page(history: Sequence[Entry], commits: Commits) -> str:
    """Return the page, with the machine of most commits first; ValueError for an empty history."""
    if not history:
        raise ValueError("the history is empty: perf gate and perf history --count add to it")
    found = by_machine(history, commits)
    machines = dict(sorted(found.items(), key=lambda each: _num_commits(each[1]), reverse=True))
    options = "".join(f"<option>{escape(machine)}</option>" for machine in machines)
    sections = "\n".join(_section(name, cases, commits) for name, cases in machines.items())
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Speed, commit by commit</title><style>{STYLE}</style></head><body>\n"
        "<h1>Speed, commit by commit</h1>\n"
        f"<p class='note'>{escape(LEGEND)}</p>\n"
        f"<p><label>Machine: <select id='machine'>{options}</select></label></p>\n"
        f"{sections}\n<script>{SCRIPT}</script></body></html>\n"
    )
