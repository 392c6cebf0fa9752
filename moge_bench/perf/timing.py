"""Interleaved timing: what is compared is measured in turns, so that drift hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Clock = Callable[[Call], float]  # runs the call and returns its seconds


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


def wall_clock(call: Call) -> float:
    """Return the seconds that ``call`` took on the host."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class CudaClock:
    """Times calls on ``device`` by CUDA events, each after its L2 cache was overwritten.

    The device first sleeps about a millisecond, in which the host enqueues the call: what is timed
    is the device's work, not the host's launches, unless the call itself waits for the device.
    """

    SLEEP_CYCLES = 2_000_000

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.scratch = torch.empty(2 * cache_bytes, dtype=torch.uint8, device=device)
        self.begin = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)

    def __call__(self, call: Call) -> float:
        """Return the seconds between the events before and after ``call``."""
        with torch.cuda.device(self.device):
            self.scratch.zero_()
            torch.cuda._sleep(self.SLEEP_CYCLES)
            self.begin.record()
            call()
            self.end.record()
            self.end.synchronize()
        return self.begin.elapsed_time(self.end) / 1e3


def clock_of(device: str) -> Clock:
    """Return the clock for calls that compute on ``device``."""
    found = torch.device(device)
    return CudaClock(found) if found.type == "cuda" else wall_clock


def interleave(
    candidates: Mapping[str, Call], *, rounds: int, warmup: int = 2, clock: Clock = wall_clock
) -> dict[str, list[float]]:
    """Call every candidate once a round, ``rounds`` times, and return seconds per call of each.

    The order is drawn anew for every other round, from a fixed seed, and reversed for the round
    after it: drift cancels over the two, and what a candidate finds in the caches is now one
    neighbour's leaving, now another's. (Always after one that leaves them full of its own, the
    same call took 0.5 ms in half of the rounds and 0.8 in the others.) ``warmup`` rounds are run
    first and not counted.
    """
    order = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in order}
    generator = random.Random(0)
    for index in range(-warmup, rounds):
        if index % 2 == 0:
            generator.shuffle(order)
        else:
            order.reverse()
        for name in order:
            elapsed = clock(candidates[name])
            if index >= 0:
                samples[name].append(elapsed)
    return samples
