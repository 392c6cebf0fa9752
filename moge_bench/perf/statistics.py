"""Statistics of paired timings: intervals of ratios, thresholds from A/A runs, verdicts.

A *block* times both sides in a palindromic order (A B B A), so that linear drift cancels, and
gives one log ratio. A *generation* is one set of fresh worker processes; everything that differs
from process to process (address layout, page placement) is constant within it, so generations,
not blocks, are the independent observations of a revision. Background: benchmatrix resamples runs
and never rounds for that reason; asv refuses to flag where its interval overlaps; both are
followed here, neither's code is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

TRIM = 0.25  # the midmean: bursts of other load spoil at most a quarter of the blocks at each end
RESAMPLES = 2000
PASS, REGRESSION, INCONCLUSIVE = "pass", "regression", "inconclusive"
ACCEPTED = "accepted"  # a regression that a person let through: see acceptance.py


@dataclass(frozen=True)
class Interval:
    """A ratio of times and its bootstrap interval; above 1 the second side is slower."""

    ratio: float
    low: float
    high: float
    confidence: float
    num_blocks: int

    def __str__(self) -> str:
        return f"{self.ratio:.4f} [{self.low:.4f}, {self.high:.4f}]"


def midmean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the middle half of ``values``."""
    return float(stats.trim_mean(np.asarray(values, dtype=float), TRIM))


def block_log_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return log(second / first) of one block: the difference of the mean log times."""
    return float(np.log(second).mean() - np.log(first).mean())


def ratio_interval(
    log_ratios: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the midmean ratio of ``log_ratios`` and its bootstrap interval (BCa, over blocks).

    Raises ValueError for fewer than 4 blocks: no interval can be resampled from them.
    """
    values = np.asarray(log_ratios, dtype=float)
    if values.size < 4 or not np.isfinite(values).all():
        raise ValueError(f"log_ratios must hold at least 4 finite blocks, got {log_ratios!r}")
    centre = midmean(values)
    if np.ptp(values) == 0.0:
        return Interval(
            math.exp(centre), math.exp(centre), math.exp(centre), confidence, len(values)
        )
    result = stats.bootstrap(
        (values,),
        lambda sample, axis: stats.trim_mean(sample, TRIM, axis=axis),
        n_resamples=RESAMPLES, confidence_level=confidence, method="BCa",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    if not (math.isfinite(low) and math.isfinite(high)):  # BCa degenerates where most blocks tie
        low, high = np.quantile(
            result.bootstrap_distribution, [(1 - confidence) / 2, (1 + confidence) / 2]
        )
    return Interval(math.exp(centre), math.exp(low), math.exp(high), confidence, len(values))


@dataclass(frozen=True)
class Noise:
    """What this machine does to two equal builds, from A/A generations.

    ``spread`` is the standard deviation of a generation's log ratio around 0, its known mean.
    """

    spread: float
    num_generations: int

    def threshold(self, generations: int, alpha: float) -> float:
        """Return the log ratio that ``generations`` of equal builds exceed with chance alpha."""
        quantile = float(stats.t.ppf(1 - alpha, df=self.num_generations))
        return quantile * self.spread / math.sqrt(generations)


def noise_from_generations(per_case: Sequence[Sequence[float]], case: int) -> Noise:
    """Return the noise of one case from the A/A log ratios of all, ``per_case[c][generation]``.

    It is the larger of the case's own spread and that of all cases together: one case alone has
    few generations, and a lucky one must not make the gate touchy. That larger spread pays for
    counting the degrees of freedom over all cases, which share their processes (a test simulates
    dependent cases and holds the false alarms to their limit).
    """
    own = np.asarray(per_case[case], dtype=float)
    pooled = np.concatenate([np.asarray(values, dtype=float) for values in per_case])
    if own.size == 0:
        raise ValueError(f"per_case[{case}] must hold at least one A/A generation, got none")
    spread = max(math.sqrt(np.mean(own**2)), math.sqrt(np.mean(pooled**2)))
    return Noise(spread, pooled.size)


@dataclass(frozen=True)
class Decision:
    """The verdict on one case, and what it was reached from."""

    case: str
    detector: str
    verdict: str
    ratio: float
    low: float
    high: float
    threshold: float
    detectable: float
    reason: str
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.verdict}: {self.case} ({self.detector}): head/base {self.ratio:.4f} "
            f"[{self.low:.4f}, {self.high:.4f}], threshold {self.threshold:.4f}, smallest "
            f"slowdown surely seen {self.detectable:.4f}; {self.reason}"
        )

    def fields(self) -> dict[str, object]:
        """Return every field, for JSON."""
        return asdict(self)


def decide_time(
    case: str,
    blocks: Sequence[Sequence[float]],
    noise: Noise,
    *,
    alpha: float,
    resolution: float,
    detector: str = "time",
    seed: int = 0,
) -> Decision:
    """Return the verdict on head/base log ratios, ``blocks[generation][block]``.

    regression: the estimate (mean over generations of their midmeans) lies above the A/A
    threshold, and the bootstrap interval above 1. pass: the interval's upper end lies below the
    threshold. Between the two, or where the smallest slowdown that would surely be seen (the
    threshold and two standard errors) is above ``resolution``: inconclusive.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be between 0 and 0.5, got {alpha}")
    estimate = float(np.mean([midmean(values) for values in blocks]))
    interval = ratio_interval([value for values in blocks for value in values], seed=seed)
    # The interval describes the blocks of the processes at hand; centred on the estimate it keeps
    # its width, and what varies between processes is in the threshold.
    shift = math.exp(estimate) / interval.ratio
    low, high = interval.low * shift, interval.high * shift
    threshold = noise.threshold(len(blocks), alpha)
    detectable = math.exp(threshold + 2 * noise.spread / math.sqrt(len(blocks)))
    if estimate > threshold and low > 1:
        verdict, reason = REGRESSION, "above what equal builds do on this machine"
    elif detectable > 1 + resolution:
        verdict = INCONCLUSIVE
        reason = f"equal builds differ too much here to see a slowdown of {resolution:.0%}"
    elif math.log(high) > threshold:
        verdict, reason = INCONCLUSIVE, "the interval straddles the threshold"
    else:
        verdict, reason = PASS, "within what equal builds do on this machine"
    return Decision(
        case, detector, verdict, math.exp(estimate), low, high, math.exp(threshold), detectable,
        reason, sum(len(values) for values in blocks),
    )  # fmt: skip


def decide_instructions(case: str, base: int, head: int, threshold: float = 1.02) -> Decision:
    """Return the verdict on two exact instruction counts: regression above ``threshold``."""
    if base <= 0 or head <= 0:
        raise ValueError(f"instruction counts must be positive, got base={base}, head={head}")
    ratio = head / base
    verdict = REGRESSION if ratio > threshold else PASS
    return Decision(
        case, "instructions", verdict, ratio, ratio, ratio, threshold, threshold,
        f"{base} -> {head} instructions, exact", 1,
    )  # fmt: skip


def not_counted(case: str) -> Decision:
    """Return the verdict on a region that base's driver counts and head's does not."""
    return Decision(
        case, "instructions", INCONCLUSIVE, 1.0, 1.0, 1.0, 1.0, 1.0,
        "base counts it, head does not any more", 0,
    )  # fmt: skip


def overall(decisions: Sequence[Decision]) -> str:
    """Return the worst verdict: regression, then inconclusive, then pass; accepted passes."""
    verdicts = {PASS if d.verdict == ACCEPTED else d.verdict for d in decisions}
    if not decisions:
        raise ValueError("decisions must hold at least one verdict, got none")
    return next(v for v in (REGRESSION, INCONCLUSIVE, PASS) if v in verdicts)
