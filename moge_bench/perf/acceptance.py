"""Slowdowns that a person let through: which case, how much, why, and until when.

They stand in results/perf/accepted.yaml, a list of

    - case: "avx2 backward N=64*"       # a part of a name, or a glob for the whole of one
      ratio: 1.08                       # the highest head/base that passes
      reason: prefetches, 0.90 of the time for 2 to 7 % more instructions
      until: 2027-01-31                 # from the day after, the gate fails again

A pattern fits kernel regions and timed cases alike, and "h=3" fits "h=3u", unit energy, too: a glob
for the whole name, "*avx2 backward N=64 k=2 h=3", fits one.

A change adds its entry in the pull request that needs it. What base's file has already holds no
more: base is as slow as it says, and the next change needs an entry of its own. Against an older
anchor, whose file lacks it, it goes on to serve until it expires.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moge_bench.perf import names
from moge_bench.perf.statistics import ACCEPTED, INCONCLUSIVE, REGRESSION, Decision

PATH = "results/perf/accepted.yaml"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "case": str,
    "ratio": (int, float),
    "reason": str,
    "until": datetime.date,
}


@dataclass(frozen=True)
class Acceptance:
    """One accepted slowdown; ``until`` is its last day, None for one that holds for this run."""

    case: str
    ratio: float
    reason: str
    until: datetime.date | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < 100:
            raise ValueError(
                f"ratio of the acceptance of {self.case!r} must be at least 1 and below 100, got "
                f"{self.ratio}"
            )
        if not self.case.strip() or not self.reason.strip():
            raise ValueError("an acceptance needs a case and a reason; one of them is empty")

    def expired(self, today: datetime.date) -> bool:
        """Say whether its last day is over."""
        return self.until is not None and today > self.until


def parse(text: str, where: str = PATH) -> list[Acceptance]:
    """Return the acceptances in YAML ``text``, none for an empty one.

    Raises ValueError that names the entry and the field that is missing, unknown or of the wrong
    type.
    """
    import yaml

    from moge_bench.config.words import parse_yaml

    try:
        entries = parse_yaml(text) or []
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where} is not YAML: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{where} must hold a list of entries, got {type(entries).__name__}")
    found = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or entry.keys() != FIELDS.keys():
            got = sorted(map(str, entry)) if isinstance(entry, dict) else entry
            raise ValueError(f"{where} entry {number} must have {sorted(FIELDS)}, got {got}")
        for field, kind in FIELDS.items():
            if not isinstance(entry[field], kind) or isinstance(entry[field], bool):
                wanted = {"until": "a date, 2027-01-31", "ratio": "a number"}.get(field, "a text")
                raise ValueError(
                    f"{where} entry {number}: {field} must be {wanted}, got {entry[field]!r}"
                )
        if isinstance(entry["until"], datetime.datetime):
            entry["until"] = entry["until"].date()
        found.append(Acceptance(**entry))
    return found


def added(head: str | None, base: str | None) -> list[Acceptance]:
    """Return what head's file accepts and base's does not, of the texts of both; None: no file.

    Raises ValueError as ``parse`` does, for head's; what base's holds in no order is nothing.
    """
    mine = parse(head or "")
    try:
        before = parse(base or "")
    except ValueError:
        before = []
    return [each for each in mine if each not in before]


def apply(
    decisions: Sequence[Decision], acceptances: Sequence[Acceptance], today: datetime.date
) -> tuple[list[Decision], list[str]]:
    """Return the decisions, regressions within an acceptance turned into "accepted", and notes.

    So is a kernel region that head does not count any more. What is accepted up to a ratio was
    sure to be seen beyond that ratio alone.

    A note tells of each acceptance that has expired though a regression needs it, and of each
    regression that goes beyond its acceptance.
    """
    result, notes = [], []
    for decision in decisions:
        mine = [a for a in acceptances if names.matches(decision.case, a.case)]
        gone = decision.verdict == INCONCLUSIVE and decision.detector == "instructions"
        if not (gone or decision.verdict == REGRESSION) or not mine:
            result.append(decision)
            continue
        words = names.title(decision.case)
        holds = [a for a in mine if decision.ratio <= a.ratio and not a.expired(today)]
        if holds:
            best = min(holds, key=lambda a: a.ratio)
            until = f" until {best.until}" if best.until else ""
            reason = f"accepted up to {best.ratio:g}{until}: {best.reason}"
            sees = max(decision.detectable, best.ratio)
            result.append(replace(decision, verdict=ACCEPTED, reason=reason, detectable=sees))
            continue
        result.append(decision)
        for a in mine:
            if a.expired(today):
                notes.append(f"{words}: its acceptance ({a.reason}) expired on {a.until}")
            else:
                notes.append(f"{words}: {decision.ratio:.4f} is beyond the accepted {a.ratio:g}")
    return result, notes
