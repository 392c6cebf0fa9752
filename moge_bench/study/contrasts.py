"""Means, intervals and paired differences over seeds; the statistics are scipy's and statsmodels'.

Few seeds are treated as few: no interval below three values, none where all values are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

MIN_SAMPLES = 3  # for an interval: with two, t(0.975, 1) = 12.7 says nothing but that
_ROUNDING = 1e-13  # relative; differences of 77.3 and 76.8 that are equal differ by 1e-14


@dataclass(frozen=True)
class Sample:
    """n values: their mean, sample standard deviation (n - 1) and 95 % interval of the mean.

    ``spread`` is None for n < 2. ``low`` and ``high``, mean -+ t(0.975, n - 1) spread / sqrt(n)
    (Student's t), and ``p``, of a two-sided t test of mean 0, are None for n < 3 and where the
    spread is 0.
    """

    mean: float
    spread: float | None
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None


def describe(values: Sequence[float], scale: float = 0.0) -> Sample | None:
    """Return the sample's mean, spread and interval; None for no values.

    A spread that rounding alone can make is 0. ``scale`` is the largest number that the values
    were computed from, where that is not the largest of them.
    """
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    mean, n = float(array.mean()), len(array)
    spread = float(array.std(ddof=1)) if n > 1 else None
    if spread is not None and spread <= _ROUNDING * max(scale, float(np.abs(array).max())):
        spread = 0.0
    if n < MIN_SAMPLES or not spread:
        return Sample(mean, spread, n)
    test = stats.ttest_1samp(array, 0.0)
    interval = test.confidence_interval(0.95)
    return Sample(mean, spread, n, float(interval.low), float(interval.high), float(test.pvalue))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Sample | None:
    """Return the sample of value - baseline over the seeds of both; None where no seed has both.

    Runs of one seed share initial weights and batches, so the difference within a seed is free
    of what the seeds have in common.
    """
    seeds = sorted(values.keys() & baseline.keys())
    scale = max((abs(v) for seed in seeds for v in (values[seed], baseline[seed])), default=0.0)
    return describe([values[seed] - baseline[seed] for seed in seeds], scale)


def survives(ps: Sequence[float | None], level: float = 0.05) -> list[bool]:
    """Return which of a family's p-values stay below ``level`` after Holm's correction.

    A None (a difference without an interval) is no test: it does not survive and does not count.
    """
    known = [index for index, p in enumerate(ps) if p is not None]
    kept = [False] * len(ps)
    if known:
        rejected = multipletests([ps[index] for index in known], level, method="holm")[0]
        for index, reject in zip(known, rejected, strict=True):
            kept[index] = bool(reject)
    return kept
