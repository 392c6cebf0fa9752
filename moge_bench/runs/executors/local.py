"""Runs as processes of this machine, up to so many at a time.

A run that runs out of memory or is killed by a signal becomes a failed record; the others go on. A
killed ``ablate`` loses the runs in flight and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Generator
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from moge_bench.config import RunConfig
from moge_bench.runs import provenance
from moge_bench.runs.execute import Progress, execute_run, failed_record, save_record
from moge_bench.runs.processes import deaf_to_interrupts, tie_to_parent
from moge_bench.runs.record import RunError
from moge_bench.runs.store import RecordStore

JOBS_PER_GPU = 4  # each process has a context and a model of its own in the GPU's memory
_REPORT_EVERY_S = 0.5


def run_locally(
    configs: list[RunConfig], store: RecordStore, jobs: int
) -> Generator[Progress, None, None]:
    """Run ``configs`` in up to ``jobs`` processes at a time; yield what they report."""
    context = multiprocessing.get_context("forkserver")
    # Children are forked from a server that has the imports done, before any thread exists.
    context.set_forkserver_preload(["moge_bench.training.loop", __name__])
    with deaf_to_interrupts():
        forkserver.ensure_running()
    code = provenance.code_version()
    waiting = deque(configs)
    running: dict[Connection, tuple[Any, RunConfig]] = {}
    ended: set[str] = set()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.popleft()
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
                    if config.run_id not in ended:
                        yield _died(config, code, store, process.exitcode)
                    continue
                if report.status is not None:
                    ended.add(config.run_id)
                yield report
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _died(config: RunConfig, code: dict[str, Any], store: RecordStore, exitcode: int) -> Progress:
    """Record a run whose process ended without a word: a segmentation fault, an OOM kill."""
    name = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    error = RunError(type="ProcessDied", message=f"the run's process ended with {name}{hint}")
    return save_record(config, store, failed_record(config, code, error))


def _child(config_json: str, root: str, code: dict[str, Any], sender: Connection) -> None:
    """Body of a run's process: train, report, write the record."""
    tie_to_parent()
    config = RunConfig.model_validate_json(config_json)
    last = time.monotonic()

    def report(done: int, _total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_EVERY_S:
            last = time.monotonic()
            sender.send(Progress(config, done))

    record = execute_run(config, code, report, Path(root))
    sender.send(save_record(config, RecordStore(Path(root)), record))
