"""Records as runs would leave them, made by hand for tests of what reads them."""

from moge_bench.config import RunConfig
from moge_bench.runs.record import Record
from moge_bench.runs.speed import SpeedPass

STUDY = """
name: gain
question: Does it help?
primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}
base: {preset: tiny-vit, seeds: 3}
axes: {method: [moe, moge]}
table: {rows: method, metrics: top1_accuracy}
"""


def make_record(config: RunConfig, accuracy: float = 50.0, **changes) -> Record:
    """A finished record as a run of ``config`` would leave it, with a given test accuracy."""
    values = {
        "status": "finished",
        "settings": config,
        "seed": config.seed,
        "metrics": [
            {"name": "top1_accuracy", "value": accuracy, "unit": "%", "split": "test",
             "step": config.training.steps},
        ],
        "parameters": {"total": 10, "active": 5},
        "peak_rss_mib": 100.0,
        "started": "2026-01-02T03:04:05Z",
        "wall_s": 1.5,
        "device": "cpu",
        "threads": 1,
        "code": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "Test CPU", "cores": 2},
        **changes,
    }  # fmt: skip
    return Record.model_validate(values)


def make_speed(tokens_per_second: float = 1000.0, peak_mib: float = 2.0) -> dict:
    """The figures of one arm as a speed pass would give them."""

    def quartiles(value):
        return {"median": value, "lower": value, "upper": value, "n": 3}

    return {
        "tokens_per_second": quartiles(tokens_per_second), "step_ms": quartiles(1.0),
        "peak_memory_mib": peak_mib, "peak_memory_source": "test", "threads": 1, "device": "cpu",
    }  # fmt: skip


def make_pass(arms: dict[str, dict], key: str = "key", **changes) -> SpeedPass:
    """A speed pass: arm_id -> ``make_speed``."""
    values = {
        "key": key, "measured_at": "2026-01-02T03:04:05Z", "machine": {"cpu": "Test CPU"},
        "torch": "2.13.0", "build": {"source_hash": "abc"}, "arms": arms, **changes,
    }  # fmt: skip
    return SpeedPass.model_validate(values)
