"""What the gate says, in words: a headline, a summary for ten seconds, the table of all cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moge_bench.perf.names import title
from moge_bench.perf.statistics import ACCEPTED, INCONCLUSIVE, REGRESSION, Decision

MOST_ROWS = 12
EXACT = "instructions"


def _split(decisions: Sequence[Decision]) -> list[tuple[str, list[Decision]]]:
    """Return (what they are called, the decisions) of regions and of timed cases, where any."""
    exact = [d for d in decisions if d.detector == EXACT]
    timed = [d for d in decisions if d.detector != EXACT]
    return [(n, ds) for n, ds in (("kernel regions", exact), ("timed cases", timed)) if ds]


def _worst(decisions: Sequence[Decision]) -> list[Decision]:
    return sorted(decisions, key=lambda d: d.ratio, reverse=True)


def headline(decisions: Sequence[Decision]) -> str:
    """Return one sentence: how many of what are slower, the worst by how much and its name.

    E.g. "36 of 36 kernel regions slower, worst 3.00x: avx2 backward N=256 k=2 h=3".
    """
    parts = []
    for what, mine in _split(decisions):
        slower = _worst([d for d in mine if d.verdict == REGRESSION])
        if slower:
            worst = f"worst {slower[0].ratio:.2f}x: {title(slower[0].case)}"
            parts.append(f"{len(slower)} of {len(mine)} {what} slower, {worst}")
        unclear = sum(d.verdict == INCONCLUSIVE for d in mine)
        if unclear:
            parts.append(f"{unclear} of {len(mine)} {what} could not be told")
        accepted = sum(d.verdict == ACCEPTED for d in mine)
        if accepted:
            parts.append(f"{accepted} of {len(mine)} {what} slower, as accepted")
        if not slower and not unclear and not accepted:
            parts.append(f"none of {len(mine)} {what} slower")
    return "; ".join(parts)


def smallest_seen(decisions: Sequence[Decision]) -> list[str]:
    """Return what slowdown the gate would surely have seen, a line a timed case, one for counts."""
    lines = []
    for what, mine in _split(decisions):
        if mine[0].detector == EXACT:
            limit = max(d.detectable for d in mine)
            lines.append(f"{limit - 1:.1%} more instructions in any of {len(mine)} {what}")
        else:
            lines += [f"{d.detectable - 1:.1%} more {d.detector}: {title(d.case)}" for d in mine]
    return lines


def summary(
    decisions: Sequence[Decision], notes: Sequence[str], verdict: str, compared: str
) -> str:
    """Return the verdict for a person in a hurry, as Markdown: the worst first, each once.

    ``compared`` names head and base.
    """
    lines = [f"## Performance gate: {verdict}", "", f"**{headline(decisions)}**", "", compared, ""]
    order = (REGRESSION, INCONCLUSIVE, ACCEPTED)
    shown = [d for v in order for d in _worst([d for d in decisions if d.verdict == v])]
    if shown:
        lines += ["| what | verdict | head/base | interval | why |", "|---|---|---|---|---|"]
        for d in shown[:MOST_ROWS]:
            lines.append(
                f"| {title(d.case)} | {d.verdict} | {d.ratio:.3f} | {_interval(d)} "
                f"| {_cell(d.reason)} |"
            )
        lines += [""]
    if len(shown) > MOST_ROWS:
        lines += [f"And {len(shown) - MOST_ROWS} more, in gate.md.", ""]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    lines += ["The smallest slowdown that this run would surely have seen:", ""]
    lines += [f"- {line}" for line in smallest_seen(decisions)] + [""]
    if verdict == REGRESSION:
        lines += [
            "Meant? Add the case to results/perf/accepted.yaml with a reason and a last day, or "
            "give a commit the trailer `Accept-instructions: 1.08`. Which commit? `moge-bench perf "
            "bisect`.",
            "",
        ]  # fmt: skip
    if verdict == INCONCLUSIVE:
        timed = any(d.verdict == INCONCLUSIVE and d.detector != EXACT for d in decisions)
        lines += [
            "Run it again, where less else runs: the machine was too noisy for its times."
            if timed else
            "A region that head is not to count any more needs an entry in "
            "results/perf/accepted.yaml.",
            "",
        ]  # fmt: skip
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return ``text`` on one line without what would end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _interval(d: Decision) -> str:
    return "exact" if d.detector == EXACT else f"[{d.low:.3f}, {d.high:.3f}]"


def report(
    decisions: Sequence[Decision], notes: Sequence[str], verdict: str, compared: str,
    facts: dict[str, Any],
) -> str:  # fmt: skip
    """Return the whole report: the summary, a line a decision, the facts."""
    lines = [
        summary(decisions, notes, verdict, compared),
        "### Every case", "",
        "head/base above 1 is slower. Instructions are exact; the threshold of time is what equal "
        "builds do in the same worker processes, and `sees` the smallest slowdown that would "
        "surely be called a regression.",
        "",
        "| case | verdict | head/base | interval | threshold | sees | reason |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for d in decisions:
        lines.append(
            f"| {title(d.case)} | {d.verdict} | {d.ratio:.4f} | {_interval(d)} | {d.threshold:.4f} "
            f"| {d.detectable:.4f} | {_cell(d.reason)} |"
        )
    lines += ["", "### Facts", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"
