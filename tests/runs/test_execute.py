"""Real cells in real processes, three training steps each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moge_bench.perf import cells
from moge_bench.presets import resolve
from moge_bench.runs import execute
from moge_bench.runs.execute import pending, run_locally
from moge_bench.runs.record import RecordStore, stable_part

TINY = {"training.steps": 3, "training.batch_size": 16, "training.warmup_steps": 1}


def tiny(method="moge", seed=0, **overrides):
    return resolve("tiny-vit", method, {**TINY, **overrides}, seed)


def ended(reports):
    return {report.config.hash(): report for report in reports if report.status is not None}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The same two cells, run twice from scratch."""
    stores = []
    for name in ("first", "second"):
        store = RecordStore(tmp_path_factory.mktemp(name))
        assert len(ended(run_locally([tiny("moge"), tiny("dense")], store, jobs=2))) == 2
        stores.append(store)
    return stores


def test_record_says_what_ran_on_what(two_runs):
    record = two_runs[0].read(tiny("moge").hash())
    assert record.status == "finished"
    assert record.backends == {"route": "extension", "experts": record.backends["experts"]}
    assert record.versions["torch"]
    assert record.machine["cpu"]
    assert record.peak_rss_mib > 50
    assert len(record.checks["group_gradient_norms"]) == 2
    assert {m.name for m in record.metrics if m.split == "test"} == {
        "top1_accuracy",
        "top5_accuracy",
        "cross_entropy",
    }


def test_same_cell_gives_the_same_record(two_runs):
    for config in (tiny("moge"), tiny("dense")):
        first, second = (store.read(config.hash()) for store in two_runs)
        assert stable_part(first) == stable_part(second)


def test_finished_cells_are_not_pending_and_failed_ones_are(two_runs, tmp_path):
    store = two_runs[0]
    assert pending([tiny("moge"), tiny("dense")], store) == []
    assert pending([tiny("moge", seed=5)], store) == [tiny("moge", seed=5)]


def test_failed_cell_leaves_a_record_that_says_why_and_the_others_run(tmp_path):
    store = RecordStore(tmp_path)
    bad, good = tiny("dense", **{"data.name": "no-such-data"}), tiny("dense")
    reports = ended(run_locally([bad, good], store, jobs=1))
    assert reports[bad.hash()].status == "failed"
    assert reports[good.hash()].status == "finished"
    record = store.read(bad.hash())
    assert record.error.type == "ValueError"
    assert "no image set is called 'no-such-data'" in record.error.message
    assert pending([bad], store) == [bad]


def test_cell_killed_by_a_signal_is_a_failed_record(tmp_path):
    store = RecordStore(tmp_path)
    long, good = tiny("dense", **{"training.steps": 100_000}), tiny("dense")
    status = {}
    for report in run_locally([long, good], store, jobs=1):
        if report.status is None and not status:
            everyone = subprocess.run(
                ["pgrep", "-f", "multiprocessing"], capture_output=True, text=True
            ).stdout.split()
            (cell,) = [int(pid) for pid in everyone if _is_cell(int(pid))]
            os.kill(cell, signal.SIGKILL)
        if report.status is not None:
            status[report.config.hash()] = report
    assert status[good.hash()].status == "finished"
    assert "SIGKILL" in status[long.hash()].message
    assert store.read(long.hash()).error.type == "ProcessDied"


def _is_cell(pid):
    """Whether ``pid`` is a grandchild of this process: a cell forked by its fork server."""
    try:
        return _stat(_stat(pid, 1), 1) == os.getpid()
    except OSError:
        return False


def _stat(pid, field):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[field])


def test_full_disk_is_reported_and_the_others_run(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordStore, "write", full)
    report = execute._write(
        tiny(), store, execute.run_cell(tiny(), {"commit": None, "dirty": None}, None)
    )
    assert report.status == "unwritten"
    assert "could not be written: [Errno 28] No space left" in report.message


def ablate(grid_file, results, *arguments):
    command = [sys.executable, "-m", "moge_bench.cli", "ablate", str(grid_file), "--results",
               str(results), *arguments]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_resume_after_a_kill_then_nothing_is_left_to_do(grid_file, tmp_path):
    results = tmp_path / "results"
    first = ablate(grid_file, results, "--jobs", "1")
    deadline = time.monotonic() + 120
    while len(list((results / "runs").glob("[0-9a-f]*.json"))) < 3:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    survivors = {path: path.stat().st_mtime_ns for path in (results / "runs").glob("*.json")}
    assert 3 <= len(survivors) < 14
    for path in survivors:
        json.loads(path.read_text())  # whole

    second = ablate(grid_file, results)
    output, problems = second.communicate(timeout=300)
    assert second.returncode == 0, problems
    assert f"14 runs, {len(survivors)} finished, {14 - len(survivors)} to do" in output
    for suffix in ("md", "tex", "csv"):
        assert (results / f"tables/tiny.{suffix}").stat().st_size > 100
    records = [json.loads(path.read_text()) for path in (results / "runs").glob("*.json")]
    assert len(records) == 14
    assert all(record["speed"]["tiny"]["peak_memory_mib"] > 1 for record in records)

    before = {path: path.stat().st_mtime_ns for path in (results / "runs").glob("*.json")}
    third = ablate(grid_file, results)
    output, _ = third.communicate(timeout=120)
    assert "14 runs, 14 finished, 0 to do" in output
    assert before == {path: path.stat().st_mtime_ns for path in (results / "runs").glob("*.json")}


def test_speed_key_depends_on_the_build_and_the_configs(monkeypatch):
    configs = [tiny("moe"), tiny("moge")]
    key = cells.speed_key(configs)
    assert cells.speed_key([tiny("moe", seed=1), tiny("moge", seed=1)]) == key
    assert cells.speed_key(configs[:1]) != key
    monkeypatch.setattr(cells.provenance, "extension_build", lambda: {"source_hash": "changed"})
    assert cells.speed_key(configs) != key


def test_new_build_times_again_without_training(tiny_grid, tmp_path, monkeypatch):
    from record_samples import make_record, make_speed

    store = RecordStore(tmp_path)
    for config in tiny_grid.configs:
        store.write(make_record(config))
    calls = []

    def fake(configs):
        calls.append(len(configs))
        figure = make_speed(1.0, 1.0)
        shown = ("tokens_per_second", "step_ms", "peak_memory_mib", "peak_memory_source", "device")
        return {
            cells.config_hash(c.without_seed()): {name: figure[name] for name in shown}
            for c in configs
        }

    monkeypatch.setattr(cells, "_measure_in_fresh_process", fake)
    assert cells.measure_grid(tiny_grid, store) == 7
    assert cells.measure_grid(tiny_grid, store) == 0
    monkeypatch.setattr(cells.provenance, "extension_build", lambda: {"source_hash": "changed"})
    assert cells.measure_grid(tiny_grid, store) == 7
    assert calls == [7, 7]
    assert all(r.speed["tiny"].build == {"source_hash": "changed"}
               for r in map(store.read, (c.hash() for c in tiny_grid.configs)))  # fmt: skip
