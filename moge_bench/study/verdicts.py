"""From numbers to words: the one table of rules by which a contrast has a verdict.

The first rule that holds decides. docs/studies.md "Verdicts" shows the table; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from moge_bench.study.contrasts import LEVEL, MIN_SAMPLES, holm, needed_seeds, smallest_effect
from moge_bench.study.estimate import Estimate

CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Evidence:
    """What the rules look at. ``selected`` is whether a cell or a diverged run is left out;
    ``towards`` is 1 where more of the metric is better, -1 where less is, 0 where neither is."""

    n: int
    selected: bool
    mean: float
    margin: float
    towards: int
    spread: bool
    p: float | None
    equivalence_p: float | None

    @property
    def differs(self) -> bool:
        """Whether a contrast was shown: p < 0.05, or equal in every seed and beyond the margin."""
        if not self.spread:
            return not self.within
        return self.p is not None and self.p < LEVEL

    @property
    def within(self) -> bool:
        """Whether it was shown to be within the margin, or is, equal in every seed."""
        if not self.spread:
            return abs(self.mean) <= self.margin
        return self.equivalence_p is not None and self.equivalence_p < LEVEL


@dataclass(frozen=True)
class Rule:
    """A verdict, the condition in words, and the condition."""

    verdict: str
    when: str
    holds: Callable[[Evidence], bool]


RULES = (
    Rule(CANNOT_TELL, "fewer than three seeds have both arms", lambda e: e.n < MIN_SAMPLES),
    Rule(
        CANNOT_TELL,
        "a cell has no seed with both arms, or a run diverged: what is left is a selection",
        lambda e: e.selected,
    ),
    Rule(
        "equivalent",
        "both one-sided tests against the margin have p < 0.05, whatever the p of a difference; "
        "or the difference is the same in every seed and at most the margin",
        lambda e: e.within,
    ),
    Rule(
        "better",
        "p < 0.05, two-sided, and the estimate is on the metric's good side; or the difference is "
        "the same in every seed, beyond the margin, on the good side",
        lambda e: e.differs and e.mean * e.towards > 0,
    ),
    Rule("worse", "the same on the bad side", lambda e: e.differs and e.mean * e.towards < 0),
    Rule(
        "higher",
        "the same of a metric without a good side, and the estimate is above zero",
        lambda e: e.differs and e.mean > 0,
    ),
    Rule("lower", "the same, and the estimate is below zero", lambda e: e.differs),
    Rule(CANNOT_TELL, "otherwise; with the number of seeds that would decide", lambda e: True),
)


def judge(evidence: Evidence) -> str:
    """Return the verdict of the first rule that holds."""
    return next(rule.verdict for rule in RULES if rule.holds(evidence))


_TOWARDS: dict[str | None, Literal[-1, 0, 1]] = {"higher": 1, "lower": -1, None: 0}


@dataclass(frozen=True)
class Tested:
    """An estimate with the p-values that decide.

    Those of the primary contrast are as they are: it is the one test of its study. Those of a
    family of ``family`` contrasts are after Holm's correction over it, of each kind of test apart.
    """

    found: Estimate
    p: float | None
    equivalence_p: float | None
    family: int = 1

    @property
    def evidence(self) -> Evidence:
        """What the rules look at."""
        contrast, declared = self.found.contrast, self.found.declared
        sample = contrast.sample if contrast is not None else None
        return Evidence(
            n=self.found.n,
            selected=self.found.selected,
            mean=sample.mean if sample else 0.0,
            margin=declared.margin,
            towards=_TOWARDS[declared.number.better],
            spread=bool(sample and sample.spread),
            p=self.p,
            equivalence_p=self.equivalence_p,
        )

    @property
    def verdict(self) -> str:
        """The verdict by the rules."""
        return judge(self.evidence)

    @property
    def side(self) -> str:
        """Of an equivalence that is none of nothing: "above zero" or "below zero"; else ""."""
        evidence = self.evidence
        if self.verdict != "equivalent" or not evidence.differs:
            return ""
        return "above zero" if evidence.mean > 0 else "below zero"

    @property
    def smallest_effect(self) -> float | None:
        """The least true contrast that this n shows with 80 % power, at 0.05 over the family."""
        contrast = self.found.contrast
        if contrast is None:
            return None
        return smallest_effect(contrast.sample, self.found.scale, LEVEL / self.family)

    @property
    def needed_n(self) -> int | None:
        """``needed_seeds`` to decide on the margin, at 0.05 over the family; None if unknown."""
        contrast, found = self.found.contrast, self.found
        if contrast is None or not contrast.sample.spread or found.n < MIN_SAMPLES:
            return None
        bound = found.scale.inner(found.declared.margin) / contrast.sample.spread
        return needed_seeds(bound, LEVEL / self.family)


def tested(estimates: Sequence[Estimate]) -> tuple[Tested, ...]:
    """Return the contrasts of one family; of one alone nothing is corrected."""
    samples = [each.contrast.sample if each.contrast is not None else None for each in estimates]
    ps = holm([sample.p if sample is not None else None for sample in samples])
    within = holm([each.equivalence.p if each.equivalence else None for each in estimates])
    return tuple(
        Tested(found, p, equivalence_p, len(estimates))
        for found, p, equivalence_p in zip(estimates, ps, within, strict=True)
    )
