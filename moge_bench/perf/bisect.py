"""Finds the commit that made a case slower: by exact counts, or by time where they say nothing.

By instructions a commit is judged by its count alone: above the geometric mean of the good and the
bad end it belongs to the bad one. That is deterministic, and needs no threshold. Commits that leave
the sources of the CPU's kernels as they are share a count, so they are never built. By time a
commit is bad where the gate's own statistics call it a regression against the good end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moge_bench.perf import callgrind, gate, names, registry, revisions
from moge_bench.perf.policy import Policy
from moge_bench.perf.statistics import INCONCLUSIVE, REGRESSION

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """The first bad commit, and the case's figures there, before it, and at both ends.

    ``step`` is the ratio of that commit to the one before it, ``whole`` that of bad to good; None
    where commits were judged by time.
    """

    commit: str
    subject: str
    case: str
    step: float | None
    whole: float | None
    judged: int

    def __str__(self) -> str:
        text = f"{self.commit[:12]} {self.subject}\n{names.title(self.case)}"
        if self.step is None or self.whole is None:
            return f"{text}: the first commit that is slower by time ({self.judged} judged)"
        text += f": {self.step:.4f} of the commit before, of {self.whole:.4f} in all"
        if self.step < math.sqrt(self.whole):
            text += "; a drift in several steps: bisect what lies before and after it too"
        return f"{text} ({self.judged} commits built)"


def first_bad(commits: Sequence[str], is_bad: Callable[[str], bool]) -> int:
    """Return the index of the first bad commit; the last is known to be bad and is not asked."""
    low, high = 0, len(commits) - 1
    while low < high:
        middle = (low + high) // 2
        if is_bad(commits[middle]):
            high = middle
        else:
            low = middle + 1
    return low


class Counter:
    """Instruction counts of commits, each distinct kernel source built and counted once."""

    def __init__(self, repo: Path, cache: Path, progress: Progress) -> None:
        self.repo, self.cache, self.progress = repo, cache, progress
        self.known: dict[str, dict[str, float]] = {}
        self.driver: revisions.Revision | None = None

    def __call__(self, commit: str) -> dict[str, float]:
        """Return the counts per token of ``commit`` by region id, by the first one's driver.

        Per token: where that does not compile, the commit's own may count over others.
        """
        for other, counts in self.known.items():
            if revisions.same_sources(self.repo, other, commit):
                return counts
        self.progress(f"counting {commit[:12]}")
        built = revisions.build(self.repo, commit, self.cache, commit[:12])
        self.driver = self.driver or built
        counts = callgrind.per_token(callgrind.count(built, driver_of=self.driver))
        self.known[commit] = {names.region_id(label): count for label, count in counts.items()}
        return self.known[commit]


def _worst(good: dict[str, float], bad: dict[str, float], pattern: str | None) -> str:
    """Return the region that grew most, of those in both that ``pattern`` fits."""
    chosen = names.choose((name for name in bad if name in good), pattern, "the kernel regions")
    return max(chosen, key=lambda name: bad[name] / good[name])


def by_instructions(
    repo: Path, good: str, bad: str, pattern: str | None, cache: Path, threshold: float,
    progress: Progress,
) -> Found:  # fmt: skip
    """Return the commit at which the worst region that ``pattern`` fits grew.

    Raises ValueError where no such region is ``threshold`` times as costly at ``bad`` as at
    ``good``, or a commit in between lacks the region.
    """
    callgrind.require_tools()
    commits = revisions.between(repo, good, bad)
    before = revisions.resolve(repo, good)
    counter = Counter(repo, cache, progress)
    at_bad, at_good = counter(commits[-1]), counter(before)
    case = _worst(at_good, at_bad, pattern)
    whole = at_bad[case] / at_good[case]
    if whole <= threshold:
        raise ValueError(
            f"{bad} is not slower than {good} by instructions: {names.title(case)}, the worst, has "
            f"{whole:.4f} of its count, and {threshold} is the threshold; try --by time"
        )
    limit = math.sqrt(at_bad[case] * at_good[case])

    def count(commit: str) -> float:
        counts = counter(commit)
        if case not in counts:
            raise ValueError(f"{commit[:12]} has no region {names.title(case)!r}: narrow the range")
        return counts[case]

    index = first_bad(commits, lambda commit: count(commit) > limit)
    parent = commits[index - 1] if index else before
    step = count(commits[index]) / count(parent)
    return Found(commits[index], _subject(repo, commits[index]), case, step, whole,
                 len(counter.known))  # fmt: skip


def by_time(
    repo: Path, good: str, bad: str, pattern: str | None, cache: Path, policy: Policy,
    progress: Progress, backend: str | None = "extension",
) -> Found:  # fmt: skip
    """Return the first commit whose case the gate calls slower than ``good``, by time alone.

    ``pattern`` must fit one case of the gate. Raises ValueError where it fits several, where
    ``bad`` is not slower, RuntimeError where the machine is too noisy to tell.
    """
    cases = registry.select("gate", pattern)
    if len(cases) > 1:
        raise ValueError(
            f"case={pattern!r} fits {len(cases)} cases of the gate, and one is bisected by time: "
            f"{', '.join(case.name for case in cases)}"
        )
    commits = revisions.between(repo, good, bad)
    base = revisions.build(repo, good, cache, "good")
    judged = 0

    def is_bad(commit: str) -> bool:
        nonlocal judged
        judged += 1
        head = revisions.build(repo, commit, cache, commit[:12])
        outcome = gate.run(
            base, head, cases, policy, instructions=False, backend=backend, progress=progress
        )
        (decision,) = outcome.decisions
        progress(f"{commit[:12]} {decision.verdict} {decision.ratio:.4f}")
        if decision.verdict == INCONCLUSIVE:
            raise RuntimeError(f"{commit[:12]} cannot be told from {good} here: {decision.reason}")
        return decision.verdict == REGRESSION

    if not is_bad(commits[-1]):
        raise ValueError(f"{bad} is not slower than {good} by time: {names.title(cases[0].name)}")
    index = first_bad(commits, is_bad)
    return Found(
        commits[index], _subject(repo, commits[index]), cases[0].name, None, None, judged
    )  # fmt: skip


def _subject(repo: Path, commit: str) -> str:
    return revisions.run_git(repo, "log", "-1", "--format=%s", commit).decode().strip()
