"""What happens to the runs in flight when the command that runs them is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from moge_bench.presets import resolve
from moge_bench.runs import execute
from moge_bench.runs.executors import local
from moge_bench.runs.store import RecordStore

LONG = {"training.steps": 200_000, "training.batch_size": 8, "training.warmup_steps": 1}


def workers_of(pid):
    """Return the processes that train for a command: the children of its fork server.

    The command has short-lived children too (git, asked for the commit), which may be gone by the
    time they are looked at.
    """
    workers = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("multiprocessing.forkserver" in part for part in child.cmdline()):
                workers += child.children()
    return workers


def wait_until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_does_not_outlive_a_killed_command(tmp_path, kill):
    settings = [part for name, value in LONG.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "moge_bench.cli", "train", "tiny-vit", "--method", "dense",
               *settings, "--results", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: workers_of(process.pid)), "no run was ever started"
        (worker,) = workers_of(process.pid)
    finally:
        process.send_signal(kill)
        process.wait()
    gone = wait_until(
        lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 20
    )
    if not gone:
        worker.kill()
    assert gone, "the run went on training for nobody"
    assert not list((tmp_path / "runs").rglob("*.json")), "a run that was cut off left a record"


def test_stopping_early_ends_the_runs_and_records_nothing(tmp_path):
    store = RecordStore(tmp_path)
    reports = local.run_locally([resolve("tiny-vit", "dense", LONG)], store, jobs=1)
    assert next(reports).status is None
    (worker,) = workers_of(os.getpid())
    reports.close()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert not store.runs.exists()


def test_the_record_of_a_killed_run_claims_no_memory_figure(tmp_path):
    store, config = RecordStore(tmp_path), resolve("tiny-vit", "dense", LONG)
    for report in local.run_locally([config], store, jobs=1):
        if report.status is None:
            for worker in workers_of(os.getpid()):
                worker.kill()
    record = store.read(config.run_id)
    assert (record.status, record.error.type) == ("failed", "ProcessDied")
    assert "SIGKILL; the kernel does so when memory runs out" in record.error.message
    assert record.peak_rss_mib is None


def test_a_nan_result_is_a_failed_record_that_names_it(monkeypatch):
    from moge_bench.training.evaluate import Metric
    from moge_bench.training.loop import RunResult

    result = RunResult(metrics=[Metric("perplexity", float("nan"), "", "test", 3)])
    monkeypatch.setattr("moge_bench.training.loop.train", lambda *_, **__: result)
    record = execute.execute_run(resolve("tiny-vit"), {"commit": None, "dirty": None}, None)
    assert record.status == "failed"
    assert "finite number" in record.error.message


def test_a_nan_among_the_routing_statistics_fails_the_run_too(monkeypatch):
    from moge_bench.training.loop import RunResult

    result = RunResult(routing=[{"block": 2, "group_loss": float("nan")}])
    monkeypatch.setattr("moge_bench.training.loop.train", lambda *_, **__: result)
    record = execute.execute_run(resolve("tiny-vit"), {"commit": None, "dirty": None}, None)
    assert record.status == "failed"
    assert "routing must hold plain finite numbers" in record.error.message
