"""Interleaved timing: what is compared is measured in turns, so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of ``num_samples`` measurements, in the unit they were given in."""

    median: float
    lower_quartile: float
    upper_quartile: float
    num_samples: int


def summarize(samples: list[float]) -> Summary:
    """Return the median and the quartiles of ``samples``; ValueError for an empty list."""
    if not samples:
        raise ValueError("samples must hold at least one measurement, got none")
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0], 1)
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, lower, upper, len(samples))


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Call every candidate once a round, ``rounds`` times, and return seconds per call of each.

    The order is reversed every other round, so that no candidate always follows the same one.
    ``warmup`` rounds are run first and not counted.
    """
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-warmup, rounds):
        for name in names if index % 2 == 0 else reversed(names):
            begin = time.perf_counter()
            candidates[name]()
            elapsed = time.perf_counter() - begin
            if index >= 0:
                samples[name].append(elapsed)
    return samples
