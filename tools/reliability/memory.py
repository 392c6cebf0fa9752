"""Trains and routes in turns in one process, and fits a line through its resident memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from moge_bench import route
from moge_bench.presets import resolve
from moge_bench.training.loop import train

# Every turn builds models and optimisers anew, so what a run keeps of the one before shows.
_TRAINED = {
    "training.steps": 20, "training.batch_size": 32, "training.warmup_steps": 2,
    "data.name": "fashion-mnist-subset", "data.evaluate_test": False,
}  # fmt: skip
_ROUTED = ((512, 64, 2), (1111, 100, 3), (64, 1024, 8), (4096, 8, 2))  # T, N, k
_ROUTINGS = 50  # of each a turn
_EVERY_S = 2.0
_WARM_UP = 0.1  # of the time: allocators and caches fill
_MOST_SAMPLES = 600  # that are kept in the figures


def run(minutes: float) -> dict[str, Any]:
    """Train and route for ``minutes``; return the samples (s, MiB) and the slope."""
    began = time.monotonic()
    samples: list[tuple[float, float]] = []
    steps = routings = 0

    def sample() -> None:
        now = time.monotonic() - began
        if not samples or now - samples[-1][0] >= _EVERY_S:
            samples.append((round(now, 1), round(resident_mib(), 2)))

    def on_step(_done: int, _total: int) -> None:
        sample()

    while time.monotonic() - began < minutes * 60:
        for method in ("moge", "moe"):
            train(resolve("tiny-vit", method, _TRAINED), on_step)
            steps += int(_TRAINED["training.steps"])  # type: ignore[call-overload]
        for num_tokens, num_experts, top_k in _ROUTED:
            for _ in range(_ROUTINGS):
                logits = torch.randn(num_tokens, num_experts, requires_grad=True)
                routing = route(logits, top_k)
                (routing.weights.sum() + routing.group_loss).backward()
                routings += 1
            sample()
    kept = [pair for pair in samples if pair[0] >= _WARM_UP * minutes * 60]
    return {
        "minutes": minutes, "training_steps": steps, "routings": routings,
        "samples": len(kept), **slope(kept),
        "first_mib": kept[0][1], "last_mib": kept[-1][1],
        "series": kept[:: 1 + len(kept) // _MOST_SAMPLES],
    }  # fmt: skip


def slope(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Return the least-squares slope of (s, MiB) in MiB an hour, with its 95% interval.

    The interval is that of independent residuals; neighbours in time are alike, so it is narrow.
    """
    seconds, mib = zip(*samples, strict=True)
    fit = stats.linregress([each / 3600 for each in seconds], mib)
    half = float(stats.t.ppf(0.975, max(len(samples) - 2, 1)) * fit.stderr)
    middle = float(fit.slope)
    return {
        "slope_mib_per_hour": round(middle, 3), "low": round(middle - half, 3),
        "high": round(middle + half, 3),
    }  # fmt: skip


def resident_mib() -> float:
    """Return the resident size of this process, MiB, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS: memory is measured on Linux alone")
