"""One estimate over studies that compare the same two things: clustered by seed.

Studies share seeds, so their differences of one seed are not independent, and many are the very
same pair of runs, which counts once. Ordinary least squares on a constant, its covariance clustered
by seed with statsmodels' small-sample factors and t of (seeds - 1) degrees: where every seed has
every pair this is the t test over the seeds' means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm

from moge_bench.study.contrasts import LEVEL, MIN_SAMPLES, Scale
from moge_bench.study.estimate import Estimate


@dataclass(frozen=True)
class Pooled:
    """The mean difference over all pairs of runs of some studies, as it is told.

    ``low``, ``high`` and ``p`` are None below three seeds and where all differences are equal.
    """

    estimate: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int
    seeds: int


def pool(estimates: Sequence[Estimate]) -> Pooled | None:
    """Return the pooled estimate; None where no cell has a pair.

    The estimates must be of one metric, split, axis and contrast, and none a trend; every pair of
    finished runs counts, of an incomplete seed too.
    """
    pairs = {
        (ours.run_id, theirs.run_id): (seed, cell.differences[seed])
        for each in estimates
        for cell in each.entered
        for seed, (ours, theirs) in cell.records.items()
    }
    if not pairs:
        return None
    scale = Scale(estimates[0].declared.number.compared == "ratio")
    seeds, differences = (np.array(each) for each in zip(*pairs.values(), strict=True))
    count = len(set(seeds.tolist()))
    mean = float(differences.mean())
    if count < MIN_SAMPLES or np.ptp(differences) == 0:
        return Pooled(scale.told(mean), None, None, None, len(pairs), count)
    fit = sm.OLS(differences, np.ones(len(pairs))).fit(
        cov_type="cluster", cov_kwds={"groups": seeds}, use_t=True
    )
    low, high = fit.conf_int(LEVEL)[0]
    return Pooled(
        scale.told(mean), scale.told(float(low)), scale.told(float(high)), float(fit.pvalues[0]),
        len(pairs), count,
    )  # fmt: skip
