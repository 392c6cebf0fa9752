"""Mean, spread and paired differences over seeds, each formula in its docstring."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Mean and sample standard deviation (n - 1) of n values; ``spread`` is None for n < 2."""

    mean: float
    spread: float | None
    n: int


def describe(values: Sequence[float]) -> Sample | None:
    """Return the mean, the sample standard deviation and n; None for no values."""
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Sample(statistics.fmean(values), spread, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Sample | None:
    """Return mean and sample standard deviation of value - baseline over the seeds of both.

    Runs of one seed share initial weights and batches, so the difference within a seed is free
    of what the seeds have in common. None where no seed has both.
    """
    return describe(
        [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    )


def half_width_95(sample: Sample) -> float | None:
    """Return t(0.975, n - 1) * spread / sqrt(n), half of the 95 % confidence interval of the mean.

    None for n < 2. Differences whose interval excludes 0 are marked in tables; with few seeds
    the interval is wide, and that is the point.
    """
    if sample.spread is None:
        return None
    return _t_quantile(sample.n - 1) * sample.spread / math.sqrt(sample.n)


def _t_quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t; from 30 degrees on the value of 30, 2.042."""
    table = (
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
        2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    )  # fmt: skip
    return table[min(degrees, len(table)) - 1]
