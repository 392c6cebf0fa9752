"""Means, intervals and paired contrasts over seeds; the statistics are scipy's and statsmodels'.

Few seeds are treated as few: no interval below three values, none where all values are equal.
A contrast of a metric that is compared as a ratio is computed on logarithms, where it is a
difference, and told in percent (``Scale``). What the words mean: docs/studies.md "Statistics".
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

LEVEL = 0.05  # of every test; an interval is of 1 - LEVEL, that of the equivalence test 1 - 2 LEVEL
POWER = 0.8
MIN_SAMPLES = 3  # for an interval: with two, t(0.975, 1) = 12.7 says nothing but that
MAX_NEEDED = 1_000_000  # seeds; more are not told apart
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
    interval = test.confidence_interval(1 - LEVEL)
    return Sample(mean, spread, n, float(interval.low), float(interval.high), float(test.pvalue))


@dataclass(frozen=True)
class Scale:
    """On what two values are subtracted: themselves, or, of a ``ratio``, their logarithms."""

    ratio: bool = False

    def difference(self, value: float, baseline: float) -> float:
        """Return value - baseline, or log(value / baseline); ValueError for a ratio of no ratio."""
        if not self.ratio:
            return value - baseline
        if value <= 0 or baseline <= 0:
            raise ValueError(f"a ratio needs values above 0, got {value} and {baseline}")
        return math.log(value / baseline)

    def told(self, difference: float) -> float:
        """Return a difference as it is told: in the metric's unit, or in percent."""
        return 100 * math.expm1(difference) if self.ratio else difference

    def inner(self, told: float) -> float:
        """Return the difference that is told as ``told``."""
        return math.log1p(told / 100) if self.ratio else told

    def largest(self, values: Sequence[float]) -> float:
        """Return the largest number that differences of ``values`` are computed from."""
        if self.ratio:
            return max((abs(math.log(v)) for v in values if v > 0), default=0.0)
        return max(map(abs, values), default=0.0)

    def tell(self, sample: Sample) -> Sample:
        """Return a sample of differences as it is told, but for its spread."""
        if sample.low is None or sample.high is None:
            return replace(sample, mean=self.told(sample.mean))
        return replace(
            sample, mean=self.told(sample.mean), low=self.told(sample.low),
            high=self.told(sample.high),
        )  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """A paired contrast over seeds, as it is told; ``Scale`` says in what.

    Attributes:
        values: of each seed.
        sample: their mean and interval; ``spread`` is that of the differences before they are
            told (of logarithms for a ratio).
        smallest_effect: ``smallest_effect`` of this contrast alone.
    """

    values: Mapping[int, float]
    sample: Sample
    smallest_effect: float | None


def contrast(differences: Mapping[int, float], scale: Scale, largest: float) -> Contrast | None:
    """Return the contrast of one difference a seed, as ``Scale.difference`` has it.

    ``largest`` as of ``describe``. None for no seed.
    """
    seeds = sorted(differences)
    sample = describe([differences[seed] for seed in seeds], largest)
    if sample is None:
        return None
    told = {seed: scale.told(differences[seed]) for seed in seeds}
    return Contrast(told, scale.tell(sample), smallest_effect(sample, scale))


def smallest_effect(sample: Sample, scale: Scale, level: float = LEVEL) -> float | None:
    """Return the least true contrast that n seeds of this spread show with 80 % power, as told.

    Shown is p < ``level``, two-sided: 0.05 over m for one of a family of m, which is what Holm's
    correction asks of the least p. None where there is no interval.
    """
    if not sample.spread or sample.n < MIN_SAMPLES:
        return None
    return scale.told(_smallest_in_spreads(sample.n, level) * sample.spread)


def paired(
    values: Mapping[int, float], baseline: Mapping[int, float], scale: Scale
) -> Contrast | None:
    """Return the contrast of value and baseline over the seeds of both; None where none has both.

    Runs of one seed share initial weights and batches, so the difference within a seed is free
    of what the seeds have in common.
    """
    seeds = values.keys() & baseline.keys()
    largest = scale.largest([v for seed in seeds for v in (values[seed], baseline[seed])])
    differences = {seed: scale.difference(values[seed], baseline[seed]) for seed in seeds}
    return contrast(differences, scale, largest)


@functools.cache
def _smallest_in_spreads(n: int, level: float) -> float:
    """Return the effect, in standard deviations, that n values show with 80 % power."""
    surely = (3 * stats.t.isf(level / 2, n - 1) + 10) / math.sqrt(n)
    return float(optimize.brentq(lambda each: _shown(each, n, level / 2) - POWER, 0.0, surely))


def _shown(effect: float, n: int, tail: float) -> float:
    """Return how probable n values make an ``effect`` in standard deviations seem: on its side
    their t is beyond that of which ``tail`` is left. (statsmodels' power is NaN at large effects.)
    """
    found = stats.nct.sf(stats.t.isf(tail, n - 1), n - 1, effect * math.sqrt(n))
    return float(np.nan_to_num(found, nan=1.0))  # scipy's where what is left of 1 has no number


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests (Schuirmann) that a contrast lies within -+ a margin, as told.

    ``p`` is the larger of the two; ``low`` and ``high`` are the 90 % interval, which lies within
    the margin exactly where p < 0.05.
    """

    p: float
    low: float
    high: float


def equivalence(
    differences: Sequence[float], margin: float, scale: Scale, largest: float = 0.0
) -> Equivalence | None:
    """Test that the mean of ``differences`` (as ``Scale.difference``) is within -+ ``margin``.

    ``margin`` as told; of a ratio the lower bound is 1 / (1 + margin). ``largest`` as of
    ``describe``; None where that has no interval.
    """
    sample = describe(differences, largest)
    if sample is None or sample.p is None or not sample.spread:
        return None
    bound = scale.inner(margin)
    described = DescrStatsW(np.asarray(differences, dtype=np.float64))
    p = float(described.ttost_mean(-bound, bound)[0])
    low, high = described.tconfint_mean(alpha=2 * LEVEL)
    return Equivalence(p, scale.told(float(low)), scale.told(float(high)))


def needed_seeds(margin: float, level: float = LEVEL) -> int | None:
    """Return how many seeds decide on a ``margin`` in standard deviations of the differences.

    The least n with 80 % power for both questions: whether there is a contrast, where it is the
    margin (two-sided), and whether there is none within it, where there is none (each of the two
    one-sided tests then needs 90 %), at ``level``, as of ``smallest_effect``. None for more than
    ``MAX_NEEDED``.
    """

    def decides(n: int) -> bool:
        return min(_shown(margin, n, level / 2), 2 * _shown(margin, n, level) - 1) >= POWER

    few, enough = MIN_SAMPLES, MIN_SAMPLES
    while not decides(enough):
        if enough == MAX_NEEDED:
            return None
        few, enough = enough, min(2 * enough, MAX_NEEDED)
    return bisect_left(range(enough), True, lo=few, key=decides)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of a family after Holm's correction; below ``LEVEL`` they survive it.

    A None, a contrast without an interval, stays None and counts: its test is still to come.
    """
    if not ps:
        return []
    adjusted = multipletests([1.0 if p is None else p for p in ps], LEVEL, method="holm")[1]
    return [None if p is None else float(q) for p, q in zip(ps, adjusted, strict=True)]
