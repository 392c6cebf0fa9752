"""What stands under a table: what a number is, n, the interval, what is fixed, how it was made."""

from __future__ import annotations

import shlex
from pathlib import Path

from moge_bench.publish.conditions import Conditions, fixed_settings
from moge_bench.publish.layout import key_label
from moge_bench.publish.numbers import Shown
from moge_bench.study.contrasts import MIN_SAMPLES
from moge_bench.study.frame import Results


class Captions:
    """The captions of a study's tables and figures."""

    def __init__(self, results: Results, conditions: Conditions, folder: Path) -> None:
        self.results = results
        self.question = results.study.question
        self.fixed = fixed_settings(results)
        self.mixed = conditions.mixed
        self.root = results_folder(folder)
        self.seeds = _seeds(results)
        self.baselines = _baselines(results)

    def value(self, shown: Shown) -> str:
        """Return what a cell with ``shown``'s value is."""
        if shown.metric.source == "speed":
            return self._speed(shown)
        varying = [n for n in shown.numbers.values() if n.sample is not None and n.sample.spread]
        most = max((len(arm.records) for arm in self.results.arms), default=0)
        if not most:
            return "No run has finished."
        if not varying and most < 2:
            return f"One run an arm, so no spread is known; {self.seeds}."
        if not varying:
            return f"The same in every run; {self.seeds}."
        return f"Mean of {self.seeds}{_interval([n.sample.n for n in varying if n.sample])}"

    def _speed(self, shown: Shown) -> str:
        speed = self.results.speed
        if speed is None:
            return "Not timed yet."
        arm = next(iter(speed.arms.values()))
        where = (
            f"{speed.machine.get('cpu', 'unknown CPU')}, {arm.device}, {arm.threads} thread(s), "
            f"torch {speed.torch}, {speed.measured_at[:10]}"
        )
        if any(number.quartiles for number in shown.numbers.values()):
            rounds = sorted({n.quartiles.n for n in shown.numbers.values() if n.quartiles})
            many = " to ".join(str(n) for n in dict.fromkeys((rounds[0], rounds[-1])))
            return (
                f"Median [quartiles] of n = {many} timed rounds of one pass after training, all "
                f"arms in turns ({where})."
            )
        return f"Measured once an arm, n = 1, exact: {arm.peak_memory_source} ({where})."

    def difference(self, shown: Shown) -> str:
        """Return what a difference is, and what bold means."""
        samples = [n.difference for n in shown.numbers.values() if n.difference is not None]
        kept = any(number.kept for number in shown.numbers.values())
        if shown.metric.compared == "ratio":
            text = "Difference in percent of the baseline: arm over baseline less one, paired by "
            text += f"seed, from the mean of the logarithms of {self.seeds}"
        else:
            unit = f" in {shown.difference_unit}" if shown.difference_unit else ""
            text = f"Difference{unit}: arm less baseline, paired by seed, mean of {self.seeds}"
        text += _interval([sample.n for sample in samples])
        if shown.family:
            text += (
                f" {'Bold: p < 0.05' if kept else 'No difference has p < 0.05'} after Holm's "
                f"correction over the study's {shown.family} differences of this metric (paired t)."
            )
        return f"{text}{_smallest(shown)} {self.baselines}"

    def ratio(self) -> str:
        """Return what a ratio is."""
        return f"Ratio: arm over baseline. {self.baselines}"

    def tail(self, command: str = "tables") -> str:
        """Return what every caption ends with."""
        care = f" Compare with care: records differ in {', '.join(self.mixed)}."
        return (
            f"Fixed: {self.fixed}.{care if self.mixed else ''} Made by: moge-bench {command} "
            f"--results {self.root}; records: {self.root}/runs, run ids: table.csv."
        )


def results_folder(folder: Path) -> str:
    """Return the results folder of studies/NAME as a command names it.

    One called results is named from there on, wherever it lies: what is committed holds no path of
    a machine. Any other is named as it was given, or from the working folder if it lies below.
    """
    root = folder.parent.parent
    if "results" in root.parts:
        last = len(root.parts) - 1 - root.parts[::-1].index("results")
        root = Path(*root.parts[last:])
    elif root.is_absolute() and root.is_relative_to(Path.cwd()):
        root = root.relative_to(Path.cwd())
    return shlex.quote(root.as_posix())


def _seeds(results: Results) -> str:
    seeds = sorted(results.study.base.seeds)
    counts = sorted({len(arm.records) for arm in results.arms})
    n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    run = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 3
    names = f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds))
    return f"n = {n} {'seed' if len(seeds) == 1 else 'seeds'} ({names})"


def _interval(counts: list[int]) -> str:
    """Return what stands in brackets behind a mean, for samples of these sizes."""
    if not counts or max(counts) < MIN_SAMPLES:
        return f"; no interval below n = {MIN_SAMPLES}."
    less = f"; none below n = {MIN_SAMPLES}" if min(counts) < MIN_SAMPLES else ""
    return f" [95 % interval, Student's t{less}; none where all values are equal]."


def _smallest(shown: Shown) -> str:
    """Say which true difference those that are not bold would have shown."""
    unseen = [
        number.contrast.smallest_effect
        for number in shown.numbers.values()
        if number.contrast and number.contrast.smallest_effect and not number.kept
    ]
    if not unseen:
        return ""
    digits, unit = shown.metric.digits, shown.difference_unit
    low, high = (f"{each:.{digits}f}" for each in (min(unseen), max(unseen)))
    several = f"{low} to {high}" if low != high else low
    return (
        f" Smallest true difference that one of them alone, not bold, would have shown (p < 0.05, "
        f"80 % power): {several}{f' {unit}' if unit else ''}, arm by arm in table.csv."
    )


def _baselines(results: Results) -> str:
    if not results.baselines:
        return "No arm has a baseline."
    if "method" not in results.study.axes:
        return _baseline_without_methods(results)
    pairs: dict[str, list[str]] = {}
    for arm in results.arms:
        other = results.baselines.get(arm.entry.arm_id)
        if other is not None and arm.method not in pairs.setdefault(other.method, []):
            pairs[other.method].append(arm.method)
    said = [f"{name} for {' and '.join(arms)}" for name, arms in pairs.items()]
    return f"Baseline: {', '.join(said)}, at the same other values."


def _baseline_without_methods(results: Results) -> str:
    primary = results.study.primary
    if primary is not None:
        value = key_label([primary.axis], (str(primary.contrast[1]),))
        return f"Baseline: {value}, at the same other values."
    if "preset" in results.study.axes:
        return "Baseline: the first arm of the same preset."
    first = results.arms[0].shown
    return f"Baseline: the first arm, {key_label(list(first), tuple(map(str, first.values())))}."
