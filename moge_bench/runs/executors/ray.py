"""Runs on a ray cluster, or on a local one that ray starts.

A run whose worker dies (a node that goes, the out-of-memory killer) is made again on another, at
most ``RETRIES`` times; its record is written once, here. A worker that sees the results folder, on
this machine or a shared disk, keeps checkpoints and probes there, so that a run made again goes on
from its last checkpoint; another one keeps neither.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

from moge_bench.config import RunConfig
from moge_bench.runs import provenance
from moge_bench.runs.execute import Progress, execute_run, explain, failed_record, save_record
from moge_bench.runs.executors.local import JOBS_PER_GPU
from moge_bench.runs.record import Record
from moge_bench.runs.store import RecordStore

RETRIES = 3


def run_on_ray(
    configs: list[RunConfig], store: RecordStore, jobs: int | None
) -> Generator[Progress, None, None]:
    """Run ``configs``, at most ``jobs`` at a time; yield their ends.

    The cluster is the one that RAY_ADDRESS names, or a new one on this machine with as many
    processors as ``jobs`` (None: all). A run takes its ``training.threads`` processors and, with
    device "cuda", the part of a GPU that ``JOBS_PER_GPU`` leaves it.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            "executor 'ray' needs the package ray: pip install 'moge-bench[ray]'"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(
            address=address, num_cpus=None if address else jobs, log_to_driver=False,
            include_dashboard=False,
        )  # fmt: skip
    code = provenance.code_version()
    remote = ray.remote(max_calls=1, max_retries=RETRIES)(_remote_run)  # a fresh worker per run
    limit = jobs or max(int(ray.cluster_resources().get("CPU", 1)), 1)
    waiting = deque(configs)
    running: dict[Any, RunConfig] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                config = waiting.popleft()
                task = remote.options(**_resources(config)).remote(
                    config.model_dump_json(), code, str(store.root.resolve())
                )
                running[task] = config
            (done,), _ = ray.wait(list(running))
            config = running.pop(done)
            try:
                record = Record.model_validate_json(ray.get(done))
            except ray.exceptions.RayError as error:
                record = failed_record(config, code, explain(error))
            yield save_record(config, store, record)
    finally:
        for task in running:
            ray.cancel(task, force=True)
        if ours:
            ray.shutdown()


def _resources(config: RunConfig) -> dict[str, float]:
    share = 1 / JOBS_PER_GPU if config.device == "cuda" else 0
    return {"num_cpus": config.training.threads, "num_gpus": share}


def _remote_run(config_json: str, code: dict[str, Any], root: str) -> str:
    folder = Path(root) if Path(root).is_dir() else None
    config = RunConfig.model_validate_json(config_json)
    return execute_run(config, code, None, folder).model_dump_json(by_alias=True)
