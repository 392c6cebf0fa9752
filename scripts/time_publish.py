"""Prints what reading, summarising and drawing a large study costs: 2,000 records of 50 arms.

`python scripts/time_publish.py [SEEDS]`. The records are made up, in a temporary folder, with
curves and routing of a real run's length.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moge_bench.analysis.store import AnalysisStore
from moge_bench.config import RunConfig
from moge_bench.publish.figures import write_figures
from moge_bench.publish.report import write_report
from moge_bench.publish.tables import write_tables
from moge_bench.runs.record import Record
from moge_bench.runs.speed import SpeedPass, SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.answer import make_answer
from moge_bench.study.frame import collect
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import make_manifest, manifest_path, read_manifest, save_manifest

STUDY = """
name: large
question: Does the gain of MoGE over MoE grow with the number of experts?
primary: {{metric: top1_accuracy, contrast: [moge, moe], over: moe.num_experts, margin: 0.5}}
secondary: [{{metric: top1_accuracy, contrast: [moge, moe], margin: 0.5}}]
base: {{preset: tiny-vit, seeds: {seeds}}}
axes:
  moe.num_experts: [9, 16, 25, 36, 64]
  training.learning_rate: [0.0005, 0.001, 0.002, 0.004, 0.008]
  method: [moe, moge]
table:
  rows: [moe.num_experts, training.learning_rate]
  columns: method
  metrics: [top1_accuracy, cross_entropy, peak_memory_mib, tokens_per_second, active_parameters]
  splits: [validation, test]
"""


def made_up(config: RunConfig, rng: random.Random) -> Record:
    """Return a finished record of ``config`` with invented numbers."""
    steps = config.training.steps
    metrics = [
        {"name": name, "value": value + rng.gauss(0, 1), "unit": "%", "split": split, "step": steps}
        for name, value in (("top1_accuracy", 77.0), ("top5_accuracy", 99.0), ("cross_entropy", 9))
        for split in ("validation", "test")
    ]
    curves = [
        {"step": step, "name": "task_loss", "split": "training", "value": 2 / step + rng.random()}
        for step in range(6, steps + 1, 6)
    ]
    experts = config.moe.num_experts if config.moe is not None else 0
    routing = [
        {"block": block, "split": "validation", "load": [1] * experts, "dead_expert_share": 0.0}
        for block in (2, 3)
    ]
    return Record.model_validate(
        {
            "status": "finished",
            "settings": config,
            "seed": config.seed,
            "metrics": metrics,
            "parameters": {"total": 10, "active": 5},
            "peak_rss_mib": 400.0,
            "started": "2026-01-02T03:04:05Z",
            "wall_s": 12.0,
            "device": "cpu",
            "threads": 1,
            "code": {"commit": "0" * 40, "dirty": False, "digest": "0"},
            "versions": {"torch": "2.13.0"},
            "machine": {"cpu": "made up"},
            "curves": curves,
            "routing": routing,
        }
    )


def main() -> None:
    """Make the study, then time what `moge-bench tables`, `figures` and `report` do with it."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    grid = parse_grid(STUDY.format(seeds=seeds), "large")
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = RecordStore(root)
        save_manifest(root, make_manifest(grid))
        for config in grid.configs:
            store.write(made_up(config, rng))
        SpeedStore(root).add(grid.file.name, _speed([arm.arm_id for arm in grid.arms]))
        print(f"{len(grid.configs)} records, {len(grid.arms)} arms")
        path = manifest_path(root, grid.file.name)
        with timed("read"):
            results = collect(read_manifest(path), RecordStore(root), SpeedStore(root))
        with timed("answer and tables"):
            write_tables(make_answer(results), path.parent)
        with timed("figures"):
            write_figures(make_answer(results), path.parent, AnalysisStore(root))
        with timed("report"):
            write_report([make_answer(results)], root)


def _speed(arm_ids: list[str]) -> SpeedPass:
    timed_value = {"median": 1000.0, "lower": 990.0, "upper": 1010.0, "n": 30}
    figures = {
        "tokens_per_second": timed_value,
        "step_ms": timed_value,
        "peak_memory_mib": 20.0,
        "peak_memory_source": "made up",
        "device": "cpu",
        "threads": 1,
    }
    return SpeedPass.model_validate(
        {
            "key": "key",
            "measured_at": "2026-01-02T03:04:05Z",
            "machine": {},
            "torch": "2.13.0",
            "build": None,
            "arms": dict.fromkeys(arm_ids, figures),
        }
    )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the processor time of the block, in seconds."""
    start = time.process_time()
    yield
    print(f"{what}: {time.process_time() - start:.1f} s of processor time")


if __name__ == "__main__":
    main()
