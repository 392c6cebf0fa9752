"""Runs on a ray cluster, or on a local one that ray starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moge_bench.config import RunConfig
from moge_bench.runs import provenance
from moge_bench.runs.execute import Progress, execute_run, explain, failed_record, save_record
from moge_bench.runs.record import Record
from moge_bench.runs.store import RecordStore


def run_on_ray(
    configs: list[RunConfig], store: RecordStore, jobs: int | None
) -> Iterator[Progress]:
    """Run ``configs`` on a ray cluster (or a local one), ``jobs`` at a time; yield their ends."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            "executor 'ray' needs the package ray: pip install 'moge-bench[ray]'"
        ) from None
    ray.init(ignore_reinit_error=True, num_cpus=jobs, log_to_driver=False)
    code = provenance.code_version()
    remote = ray.remote(max_calls=1)(_remote_run)  # a fresh worker per run
    tasks = {
        remote.options(num_cpus=config.training.threads).remote(config.model_dump_json(), code):
            config for config in configs
    }  # fmt: skip
    while tasks:
        (done,), _ = ray.wait(list(tasks))
        config = tasks.pop(done)
        try:
            record = Record.model_validate_json(ray.get(done))
        except ray.exceptions.RayError as error:
            record = failed_record(config, code, explain(error))
        yield save_record(config, store, record)


def _remote_run(config_json: str, code: dict[str, Any]) -> str:
    return execute_run(RunConfig.model_validate_json(config_json), code, None).model_dump_json(
        by_alias=True
    )
