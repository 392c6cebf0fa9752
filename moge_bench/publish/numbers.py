"""What a study shows of every arm: the figure, its interval, and how it stands to its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from moge_bench.metrics import Metric
from moge_bench.runs.speed import Quartiles
from moge_bench.study.contrasts import LEVEL, Contrast, Sample, Scale, describe, holm, paired
from moge_bench.study.frame import ANY, Arm, Results, figures, quartiles, values_by_seed


@dataclass(frozen=True)
class Number:
    """One figure of one arm, unrounded.

    Attributes:
        arm: whose it is.
        values: by seed; a speed is the same for all.
        sample: of the values; None where there are none.
        quartiles: of a timed figure.
        baseline: what the arm is compared with, or None.
        contrast: of a metric that a run finds, paired by seed; None where no seed has both.
        ratio: of any other, to the baseline's.
        p_holm: p of the contrast after Holm's correction over its ``Shown.family``.
    """

    arm: Arm
    values: Mapping[int, float]
    sample: Sample | None
    quartiles: Quartiles | None
    baseline: Arm | None
    contrast: Contrast | None
    ratio: float | None
    p_holm: float | None = None

    @property
    def difference(self) -> Sample | None:
        """The contrast's mean and interval, as it is told: points, or percent of a ratio."""
        return self.contrast.sample if self.contrast is not None else None

    @property
    def kept(self) -> bool:
        """Whether the difference survives the correction."""
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Shown:
    """A metric on a split ("" where none is read), of every arm by arm_id.

    ``family`` is how many differences of the metric were tested together: all those of the
    study that have an interval, on every split that it shows.
    """

    metric: Metric
    split: str
    numbers: dict[str, Number]
    family: int = 0

    @property
    def title(self) -> str:
        """Split and metric, without the unit."""
        return self.metric.title_on(self.split)

    @property
    def heading(self) -> str:
        """Split, metric and unit."""
        return f"{self.title} ({self.metric.unit})" if self.metric.unit else self.title

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: points of two percentages, % of a ratio."""
        return self.metric.contrast_unit


def shown_numbers(results: Results) -> list[Shown]:
    """Return every figure of the study's table, in its order; each record is looked at once."""
    found = [_of_every_arm(results, metric, split) for metric, split in figures(results.study)]
    for name in {each.metric.name for each in found}:
        places = [i for i, each in enumerate(found) if each.metric.name == name]
        tests = [
            (i, arm_id, number.difference.p)
            for i in places
            for arm_id, number in found[i].numbers.items()
            if number.difference is not None and number.difference.p is not None
        ]
        for (i, arm_id, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
            found[i].numbers[arm_id] = replace(found[i].numbers[arm_id], p_holm=p)
        for i in places:
            found[i] = replace(found[i], family=len(tests))
    return found


def _of_every_arm(results: Results, metric: Metric, split: str) -> Shown:
    values = {arm.entry.arm_id: values_by_seed(arm, metric, split) for arm in results.arms}
    samples = {arm_id: describe(list(found.values())) for arm_id, found in values.items()}
    numbers, scale = {}, Scale(metric.compared == "ratio")
    for arm in results.arms:
        arm_id = arm.entry.arm_id
        baseline = results.baselines.get(arm_id)
        contrast = ratio = None
        if baseline is not None and metric.paired:
            contrast = paired(values[arm_id], values[baseline.entry.arm_id], scale)
        elif baseline is not None:
            ratio = _ratio(samples[arm_id], samples[baseline.entry.arm_id])
        numbers[arm_id] = Number(
            arm, values[arm_id], samples[arm_id],
            quartiles(arm, metric) if metric.source == "speed" else None,
            baseline, contrast, ratio,
        )  # fmt: skip
    return Shown(metric, split, numbers)


def _ratio(sample: Sample | None, other: Sample | None) -> float | None:
    return sample.mean / other.mean if sample and other and other.mean else None


def arm_frame(results: Results, numbers: list[Shown]) -> pd.DataFrame:
    """Return one row per arm and figure: everything the tables round, and the arm's run ids."""
    rows: list[dict[str, Any]] = []
    for arm in results.arms:
        counts = {state: arm.count(state) for state in ("failed", "diverged")}
        found = sorted({**arm.records, **arm.unfinished}.items())
        for shown in numbers:
            number = shown.numbers[arm.entry.arm_id]
            sample, difference, timed = number.sample, number.difference, number.quartiles
            rows.append(
                {
                    **arm.shown,
                    "arm_id": arm.entry.arm_id,
                    "metric": shown.metric.name,
                    "split": shown.split or ANY,
                    "unit": shown.metric.unit,
                    "n": len(arm.records),
                    **counts,
                    "missing": arm.missing,
                    "mean": sample and sample.mean,
                    "spread": sample and sample.spread,
                    "low": sample and sample.low,
                    "high": sample and sample.high,
                    "lower_quartile": timed and timed.lower,
                    "upper_quartile": timed and timed.upper,
                    "baseline": number.baseline.entry.arm_id if number.baseline else None,
                    "ratio": number.ratio,
                    "difference": difference and difference.mean,
                    "difference_n": difference and difference.n,
                    "difference_low": difference and difference.low,
                    "difference_high": difference and difference.high,
                    "difference_unit": shown.difference_unit if difference else None,
                    "p": difference and difference.p,
                    "p_holm": number.p_holm,
                    "survives_holm": number.kept,
                    "smallest_effect": number.contrast and number.contrast.smallest_effect,
                    "run_ids": " ".join(record.run_id for _, record in found),
                }
            )  # fmt: skip
    return pd.DataFrame(rows).astype({"difference_n": "Int64"})  # a count, where there is one
