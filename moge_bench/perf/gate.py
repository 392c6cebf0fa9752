"""The performance gate: is head slower than base? pass, regression or inconclusive.

Two detectors. *Instructions* of the routing kernels under callgrind are exact: the same build
gives the same count, so 2 % needs no statistics and cannot be a false alarm. *Time* of forward
and backward through the public functions, in fresh worker processes, sees what instructions do
not (cache misses, threads, allocation, the Python above the kernels), as far as the noise that
two equal builds show in the same processes allows; that limit is reported with every verdict.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moge_bench.perf import acceptance, callgrind, measure, names
from moge_bench.perf.policy import Policy
from moge_bench.perf.registry import Case
from moge_bench.perf.revisions import Revision
from moge_bench.perf.statistics import (
    INCONCLUSIVE,
    REGRESSION,
    Decision,
    decide_instructions,
    decide_time,
    noise_from_generations,
    not_counted,
    overall,
)
from moge_bench.perf.timing import Summary, summarize


@dataclass(frozen=True)
class Outcome:
    """What the gate found: all decisions, head's time per case, and its instructions.

    ``head_instructions`` has the kernel driver's labels; ``cleared`` the ratio at which a case
    first looked slower before fresh processes took that back.
    """

    decisions: list[Decision]
    head_ms: dict[str, Summary]
    head_instructions: dict[str, int]
    notes: list[str]
    cleared: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst verdict of all decisions."""
        return overall(self.decisions)


Progress = Callable[[str], None]
Generation = Callable[[dict[Case, measure.Samples]], None]


def compare_instructions(
    base: Revision, head: Revision, threshold: float
) -> tuple[list[Decision], callgrind.Counts, list[str]]:
    """Return a decision per kernel region, head's counts, and notes on what was not compared.

    A region that base's own driver has and head's lacks cannot be told.
    """
    after = callgrind.count(head)
    if not (base.tree / "csrc").exists():
        return [], after, [f"{base.name} has no csrc, so there are no instructions to compare"]
    before = callgrind.count(base, driver_of=head)
    notes: list[str] = []
    decisions = [
        decide_instructions(names.region_id(region), before[region], after[region], threshold)
        for region in after
        if region in before
    ]
    # Tokens may be others: a region is what it does.
    counted = {names.region_id(region) for region in after}
    once = dict.fromkeys(names.region_id(region) for region in callgrind.regions(base))
    decisions += [not_counted(region) for region in once if region not in counted]
    notes += [
        f"{names.title(names.region_id(region))} is not in base: not compared"
        for region in after
        if region not in before
    ]
    return decisions, after, notes


def compare_times(
    cases: Sequence[Case], policy: Policy, run_generation: Generation, progress: Progress
) -> tuple[list[Decision], dict[Case, measure.Samples]]:
    """Measure until every case is decided or the limit is reached; return the last decisions.

    A case that is decided is not measured again, so a long run concentrates on what is open. A
    regression must be seen twice: the case is measured again in as many fresh processes, which are
    judged by themselves, since on a shared machine one look is now and then disturbed in a way
    that the equal builds beside it are not.
    """
    samples = measure.new_samples(cases)
    alpha = policy.false_alarms / (len(cases) * policy.looks)
    decided: dict[Case, Decision] = {}

    def judge(case: Case, first_generation: int) -> None:
        kin = [other for other in cases if measure.clock_of(other) == measure.clock_of(case)]
        aa = [samples[other].noise_generations() for other in kin]
        decided[case] = decide_time(
            case.name, samples[case].head[first_generation:],
            noise_from_generations(aa, kin.index(case)),
            alpha=alpha, detector=f"{measure.clock_of(case)} time",
            resolution=policy.resolution if case.threads == 1 else policy.wall_resolution,
        )  # fmt: skip

    open_cases = list(cases)
    for look in range(policy.looks):
        done = look * policy.generations
        for _ in range(min(policy.generations, policy.max_generations - done)):
            run_generation({case: samples[case] for case in open_cases})
        for case in open_cases:
            judge(case, 0)
        suspects = [case for case in open_cases if decided[case].verdict == REGRESSION]
        if suspects:
            progress(f"{len(suspects)} cases look slower: measured again in fresh processes")
            known = {case: len(samples[case].head) for case in suspects}
            for _ in range(policy.generations):
                run_generation({case: samples[case] for case in suspects})
            for case in suspects:
                first = decided[case].ratio
                judge(case, known[case])
                if decided[case].verdict != REGRESSION:
                    samples[case].cleared = max(first, samples[case].cleared or first)
                    del samples[case].head[: known[case]]
        open_cases = [case for case in open_cases if decided[case].verdict == INCONCLUSIVE]
        if not open_cases:
            break
        progress(f"{len(open_cases)} cases still inconclusive: more pairs")
    return [decided[case] for case in cases], samples


def run(
    base: Revision,
    head: Revision,
    cases: Sequence[Case],
    policy: Policy,
    *,
    instructions: bool = True,
    regions: str | None = None,
    accepted: Sequence[acceptance.Acceptance] = (),
    backend: str | None = "extension",
    progress: Progress = print,
) -> Outcome:
    """Compare two built revisions and return the outcome.

    ``cases`` are timed, none if there are none. ``regions``: of the instruction counts, only those
    that this pattern fits (`names.matches`). ``accepted``: what a person let through. ``backend``
    is what every worker must report to have run; None takes anything (for trees without an
    extension). Raises ValueError if nothing is left to compare, RuntimeError where a worker or a
    tool fails.
    """
    if not (instructions or cases):
        raise ValueError("nothing to compare: give cases to time, or count instructions")
    decisions: list[Decision] = []
    counts: callgrind.Counts = {}
    notes: list[str] = []
    if instructions:
        callgrind.require_tools()
        progress("counting instructions under callgrind")
        decisions, counts, notes = compare_instructions(base, head, policy.instruction_threshold)
        if decisions and not cases:  # with cases to time, the pattern may fit those alone
            names.choose((d.case for d in decisions), regions, "the kernel regions")
        decisions = [d for d in decisions if names.matches(d.case, regions)]
    head_ms: dict[str, Summary] = {}
    cleared: dict[str, float] = {}
    if cases:

        def generation(samples: dict[Case, measure.Samples]) -> None:
            measure.measure_generation(base, head, samples, policy.blocks, backend)

        progress(
            f"timing {len(cases)} cases in fresh processes, at least {policy.generations} times"
        )
        timed, samples = compare_times(cases, policy, generation, progress)
        decisions += timed
        head_ms = {case.name: summarize(samples[case].head_ms) for case in cases}
        cleared = {
            case.name: mine.cleared for case, mine in samples.items() if mine.cleared is not None
        }
        notes += [
            f"{names.title(name)} first looked {ratio:.3f} times as slow; measured again in fresh "
            "processes it did not"
            for name, ratio in cleared.items()
        ]
    decisions, more = acceptance.apply(decisions, accepted, datetime.date.today())
    return Outcome(decisions, head_ms, counts, notes + more, cleared)
