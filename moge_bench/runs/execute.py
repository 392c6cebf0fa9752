"""Run the cells of a grid that have no record yet, each in a process of its own.

A cell that raises, runs out of memory or is killed by a signal becomes a failed record; the
others go on. A killed ``ablate`` loses the cells in flight and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from moge_bench.config import RunConfig
from moge_bench.runs import provenance
from moge_bench.runs.processes import tie_to_parent
from moge_bench.runs.record import Code, MetricValue, Record, RecordStore, RunError

StepCallback = Callable[[int, int], None]
_REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class Progress:
    """What a cell in flight tells: steps done; or, once, how it ended."""

    config: RunConfig
    steps: int
    status: str | None = None  # "finished", "failed" or "unwritten"
    message: str = ""


def run_cell(config: RunConfig, code: dict[str, Any], on_step: StepCallback | None) -> Record:
    """Train one cell in this process and return its record; an exception becomes a failed one."""
    from moge_bench.training.loop import train

    started, begin = _now(), time.perf_counter()

    def record(**values: Any) -> Record:
        wall_s, rss = time.perf_counter() - begin, provenance.peak_rss_mib()
        return _record(config, code, started, wall_s, peak_rss_mib=rss, **values)

    try:
        result = train(config, on_step)
        # A NaN among the figures is refused by the record, and so fails the cell by name.
        return record(
            status="finished", device=result.device, parameters=result.parameters,
            metrics=[MetricValue(**asdict(metric)) for metric in result.metrics],
            curves=result.curves, routing=result.routing, backends=result.backends,
            checks=result.checks,
        )  # fmt: skip
    except Exception as error:
        return record(status="failed", error=_explain(error))


def _explain(error: Exception) -> RunError:
    return RunError(type=type(error).__name__, message=str(error), traceback=traceback.format_exc())


def _record(
    config: RunConfig, code: dict[str, Any], started: str, wall_s: float, **values: Any
) -> Record:
    return Record.model_validate(
        {
            "hash": config.hash(),
            "config": config,
            "seed": config.seed,
            "started": started,
            "wall_s": round(wall_s, 3),
            "threads": config.training.threads,
            "device": "cpu",
            "code": Code(**code),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "build": provenance.extension_build(),
            **values,
        }
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def pending(configs: list[RunConfig], store: RecordStore) -> list[RunConfig]:
    """Return the configs without a finished record; a failed one is tried again."""
    missing = []
    for config in configs:
        record = store.read(config.hash())
        if record is None or record.status != "finished":
            missing.append(config)
    return missing


def run_locally(configs: list[RunConfig], store: RecordStore, jobs: int) -> Iterator[Progress]:
    """Run ``configs`` in up to ``jobs`` processes at a time; yield what they report."""
    context = multiprocessing.get_context("forkserver")
    # Children are forked from a server that has the imports done, before any thread exists.
    context.set_forkserver_preload(["moge_bench.training.loop", "moge_bench.runs.execute"])
    code = provenance.code_version()
    waiting = list(configs)
    running: dict[Connection, tuple[Any, RunConfig]] = {}
    ended: set[str] = set()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child, args=(config.model_dump_json(), str(store.root), code, sender)
                )
                process.start()
                sender.close()
                running[receiver] = (process, config)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, config = running[ready]
                try:
                    report = ready.recv()
                except (EOFError, OSError):  # OSError: killed in the middle of a message
                    process.join()
                    del running[ready]
                    if config.hash() not in ended:
                        yield _died(config, code, store, process.exitcode)
                    continue
                if report.status is not None:
                    ended.add(config.hash())
                yield report
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _died(config: RunConfig, code: dict[str, Any], store: RecordStore, exitcode: int) -> Progress:
    """Record a cell whose process ended without a word: a segmentation fault, an OOM kill."""
    name = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    error = RunError(type="ProcessDied", message=f"the cell's process ended with {name}{hint}")
    record = _record(config, code, _now(), 0.0, status="failed", error=error)
    return _write(config, store, record)


def _write(config: RunConfig, store: RecordStore, record: Record) -> Progress:
    message = f"{record.error.type}: {record.error.message}" if record.error else ""
    try:
        path = store.write(record)
    except OSError as error:
        reason = f"{store.path(record.hash)} could not be written: {error}"
        return Progress(config, config.training.steps, "unwritten", reason)
    message = message or f"{path.name} after {record.wall_s:.0f} s"
    return Progress(config, config.training.steps, record.status, message)


def _child(config_json: str, root: str, code: dict[str, Any], sender: Connection) -> None:
    """Body of a cell's process: train, report, write the record."""
    tie_to_parent()
    config = RunConfig.model_validate_json(config_json)
    last = time.monotonic()

    def report(done: int, _total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_EVERY_S:
            last = time.monotonic()
            sender.send(Progress(config, done))

    record = run_cell(config, code, report)
    sender.send(_write(config, RecordStore(Path(root)), record))


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
    remote = ray.remote(max_calls=1)(_remote_cell)  # a fresh worker per cell
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
            record = _record(config, code, _now(), 0.0, status="failed", error=_explain(error))
        yield _write(config, store, record)


def _remote_cell(config_json: str, code: dict[str, Any]) -> str:
    return run_cell(RunConfig.model_validate_json(config_json), code, None).model_dump_json()
