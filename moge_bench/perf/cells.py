"""Speed and memory of a study's arms: a serial pass after training, interleaved over the arms.

All arms that one table compares are timed in one fresh process, in turns, on freshly initialised
models, so that a drift of the machine hits them alike; then each one's peak of live tensor bytes is
taken. Before anything is timed, the MoE layers are compared with the reference, forward and
backward: no speed is published for a kernel that is wrong.

The figures go to results/speed (runs/speed.py), never into training records. They are taken again
when anything they depend on has changed: the build of the extension, the code that computes, the
libraries, the machine, or the set of arms compared. Nothing is trained again for that.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from moge_bench.config import RunConfig
from moge_bench.config.identity import digest_of
from moge_bench.metrics import from_source
from moge_bench.perf.kernel_check import check_kernels
from moge_bench.perf.memory import MIB, peak_cuda_bytes, peak_tensor_bytes
from moge_bench.perf.timing import interleave, summarize
from moge_bench.runs import provenance
from moge_bench.runs.processes import deaf_to_interrupts, tie_to_parent
from moge_bench.runs.speed import SpeedPass, SpeedStore
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import Grid
from moge_bench.training.allocator import freed_memory_kept

if TYPE_CHECKING:
    from moge_bench.training.task import Task

# Rounds fit the budget, within these limits; 13 arms of tiny-vit reach the upper one.
BUDGET_S = 40.0
MIN_ROUNDS, MAX_ROUNDS = 5, 30


def compared_configs(grid: Grid, store: RecordStore) -> dict[str, RunConfig]:
    """Return arm_id -> config of every arm that has a finished run: that of its first such seed."""
    chosen: dict[str, RunConfig] = {}
    for arm in grid.arms:
        for config, run_id in zip(arm.configs, arm.run_ids, strict=True):
            record = store.read(run_id)
            if record is not None and record.status == "finished":
                chosen[arm.arm_id] = config
                break
    return chosen


def speed_key(configs: Mapping[str, RunConfig]) -> str:
    """Return a digest of everything the figures depend on."""
    return digest_of(
        {
            "arms": sorted(configs),
            "build": provenance.extension_build(),
            "code": provenance.code_digest(),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "budget": [BUDGET_S, MIN_ROUNDS, MAX_ROUNDS],
        }
    )


def measure_study(
    grid: Grid,
    store: RecordStore,
    speeds: SpeedStore,
    on_start: Callable[[int], None] | None = None,
) -> int:
    """Time the arms of a study that have a finished run, where figures are missing or stale.

    Returns how many arms were timed: all or none, since they are compared with each other. None
    are for a study whose table shows no speed.
    """
    if not set(grid.file.table.metrics) & set(from_source("speed")):
        return 0
    configs = compared_configs(grid, store)
    key = speed_key(configs)
    if not configs or any(each.key == key for each in speeds.passes(grid.file.name)):
        return 0
    if on_start is not None:
        on_start(len(configs))
    measured = SpeedPass.model_validate(
        {
            "key": key,
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": provenance.machine(),
            "torch": provenance.versions()["torch"],
            "build": provenance.extension_build(),
            "arms": _measure_in_fresh_process(list(configs.values())),
        }
    )
    speeds.add(grid.file.name, measured)
    return len(configs)


def _measure_in_fresh_process(configs: list[RunConfig]) -> dict[str, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=([config.model_dump_json() for config in configs], sender)
    )
    with deaf_to_interrupts():
        process.start()
    sender.close()
    try:
        answer = json.loads(receiver.recv())
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the speed pass ended with exit code {process.exitcode}; its message stands above"
        ) from None
    finally:
        process.terminate()  # does nothing to one that has ended
        process.join()
    if "error" in answer:
        raise RuntimeError(f"nothing was timed: {answer['error']}")
    return answer["figures"]


def _child(config_jsons: list[str], sender: Connection) -> None:
    """Body of the speed pass's process: check, then measure."""
    tie_to_parent()
    configs = [RunConfig.model_validate_json(text) for text in config_jsons]
    try:
        check_kernels(configs)
        answer: dict[str, Any] = {"figures": measure(configs)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sender.send(json.dumps(answer))


@freed_memory_kept()
def measure(configs: list[RunConfig]) -> dict[str, dict[str, Any]]:
    """Time ``configs`` in turns in this process, then take the peak memory of each."""
    from moge_bench.training.tasks import make_task
    from moge_bench.training.trainer import TrainingStep

    tasks = {_data_key(config): make_task(config) for config in configs}
    names = [config.arm_id for config in configs]
    steps = {
        name: TrainingStep(config, tasks[_data_key(config)])
        for name, config in zip(names, configs, strict=True)
    }
    tokens = {name: step.tokens_per_step for name, step in steps.items()}
    devices = {name: step.device for name, step in steps.items()}
    rounds = _affordable_rounds(steps)
    samples = interleave(steps, rounds=rounds, warmup=1)
    for step in steps.values():
        step.check()
    scoring = {name: step.score for name, step in steps.items()}
    scored = interleave(scoring, rounds=rounds, warmup=1)
    tf32 = {name: step.tf32 if devices[name].type == "cuda" else None
            for name, step in steps.items()}  # fmt: skip
    del steps, scoring
    figures = {}
    for name, config in zip(names, configs, strict=True):
        peak, source = _peak_memory(config, tasks[_data_key(config)], devices[name])
        figures[name] = {
            "tokens_per_second": _quartiles([tokens[name] / s for s in samples[name]]),
            "step_ms": _quartiles([1000 * s for s in samples[name]]),
            "scoring_tokens_per_second": _quartiles([tokens[name] / s for s in scored[name]]),
            "peak_memory_mib": peak / MIB,
            "peak_memory_source": source,
            "device": str(devices[name]),
            "threads": config.training.threads,
            "tf32": tf32[name],
        }
    return figures


def _affordable_rounds(steps: Mapping[str, Callable[[], object]]) -> int:
    """Warm up with two rounds and return how many more fit the budget."""
    interleave(steps, rounds=1, warmup=0)
    round_s = sum(sum(times) for times in interleave(steps, rounds=1, warmup=0).values())
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(BUDGET_S / round_s)))


def _data_key(config: RunConfig) -> str:
    """Name what a task depends on: steps that agree on it share the loaded data."""
    return f"{config.data.model_dump_json()} {config.model.structure}"


def _peak_memory(config: RunConfig, task: Task, device: torch.device) -> tuple[int, str]:
    from moge_bench.training.trainer import TrainingStep

    if device.type == "cuda":
        gc.collect()  # the models of other arms, whose cycles hold their tensors
        before = torch.cuda.memory_allocated(device)  # cuBLAS's workspace, and what is shared
        step = TrainingStep(config, task)
        step()
        peak = peak_cuda_bytes(step, device) - before
        return peak, "torch.cuda.max_memory_allocated, less what was allocated before the step"
    peak = peak_tensor_bytes(lambda: TrainingStep(config, task))
    return peak, "live tensor bytes of model, optimiser, batch and step; torch.profiler"


def _quartiles(values: list[float]) -> dict[str, Any]:
    summary = summarize(values)
    return {
        "median": summary.median,
        "lower": summary.lower_quartile,
        "upper": summary.upper_quartile,
        "n": summary.num_samples,
    }
