"""Real runs in real processes, three training steps each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from moge_bench.presets import resolve
from moge_bench.runs import execute
from moge_bench.runs.execute import pending
from moge_bench.runs.executors.local import run_locally
from moge_bench.runs.record import stable_part
from moge_bench.runs.speed import SpeedStore
from moge_bench.runs.store import RecordStore

pytestmark = pytest.mark.usefixtures("few_images")

TINY = {"training.steps": 3, "training.batch_size": 16, "training.warmup_steps": 1}


def tiny(method="moge", seed=0, **overrides):
    return resolve("tiny-vit", method, {**TINY, **overrides}, seed)


def ended(reports):
    return {report.config.run_id: report for report in reports if report.status is not None}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, few_images):
    """The same two runs, run twice from scratch."""
    stores = []
    for name in ("first", "second"):
        store = RecordStore(tmp_path_factory.mktemp(name))
        assert len(ended(run_locally([tiny("moge"), tiny("dense")], store, jobs=2))) == 2
        stores.append(store)
    return stores


def test_record_says_what_ran_on_what(two_runs):
    record = two_runs[0].read(tiny("moge").run_id)
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


def test_same_run_gives_the_same_record(two_runs):
    for config in (tiny("moge"), tiny("dense")):
        first, second = (store.read(config.run_id) for store in two_runs)
        assert stable_part(first) == stable_part(second)


def test_finished_runs_are_not_pending_and_failed_ones_are(two_runs, tmp_path):
    store = two_runs[0]
    assert pending([tiny("moge"), tiny("dense")], store) == []
    assert pending([tiny("moge", seed=5)], store) == [tiny("moge", seed=5)]


def test_failed_run_leaves_a_record_that_says_why_and_the_others_run(tmp_path):
    store = RecordStore(tmp_path)
    bad, good = tiny("dense", **{"data.name": "no-such-data"}), tiny("dense")
    reports = ended(run_locally([bad, good], store, jobs=1))
    assert reports[bad.run_id].status == "failed"
    assert reports[good.run_id].status == "finished"
    record = store.read(bad.run_id)
    assert record.error.type == "ValueError"
    assert "no image set or folder is called 'no-such-data'" in record.error.message
    assert pending([bad], store) == [bad]


def test_run_killed_by_a_signal_is_a_failed_record(tmp_path):
    store = RecordStore(tmp_path)
    long, good = tiny("dense", **{"training.steps": 100_000}), tiny("dense")
    status = {}
    for report in run_locally([long, good], store, jobs=1):
        if report.status is None and not status:
            everyone = subprocess.run(
                ["pgrep", "-f", "multiprocessing"], capture_output=True, text=True
            ).stdout.split()
            (run,) = [int(pid) for pid in everyone if _is_run(int(pid))]
            os.kill(run, signal.SIGKILL)
        if report.status is not None:
            status[report.config.run_id] = report
    assert status[good.run_id].status == "finished"
    assert "SIGKILL" in status[long.run_id].message
    assert store.read(long.run_id).error.type == "ProcessDied"


def _is_run(pid):
    """Whether ``pid`` is a grandchild of this process: a run forked by its fork server."""
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
    report = execute.save_record(
        tiny(), store, execute.execute_run(tiny(), {"commit": None, "dirty": None}, None)
    )
    assert report.status == "unwritten"
    assert "could not be written: [Errno 28] No space left" in report.message


def ablate(grid_file, results, *arguments):
    command = [sys.executable, "-m", "moge_bench.cli", "ablate", str(grid_file), "--results",
               str(results), *arguments]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def times(results):
    return {path: path.stat().st_mtime_ns for path in (results / "runs").glob("??/*.json")}


@pytest.mark.slow
def test_resume_after_a_kill_then_nothing_is_left_to_do(grid_file, tmp_path):
    """Of two arms and four seeds: an arm more costs seconds to time."""
    grid = yaml.safe_load(grid_file.read_text())
    grid["base"]["seeds"], grid["table"]["rows"] = [0, 1, 2, 3], ["method"]
    grid["axes"] = {"method": ["dense", "moge"]}
    grid_file.write_text(yaml.safe_dump(grid))
    results = tmp_path / "results"
    first = ablate(grid_file, results, "--jobs", "1")
    deadline = time.monotonic() + 600
    while len(list((results / "runs").glob("??/[0-9a-f]*.json"))) < 3:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    survivors = times(results)
    assert 3 <= len(survivors) < 8
    for path in survivors:
        json.loads(path.read_text())  # whole

    second = ablate(grid_file, results)
    output, problems = second.communicate(timeout=300)
    assert second.returncode == 0, problems
    assert f"8 runs, {len(survivors)} done, {8 - len(survivors)} to do" in output
    for name in ("manifest.json", "tables.md"):
        assert (results / "studies/tiny" / name).stat().st_size > 100
    records = [json.loads(path.read_text()) for path in (results / "runs").glob("??/*.json")]
    assert len(records) == 8
    (timed,) = SpeedStore(results).passes("tiny")
    assert all(arm.peak_memory_mib > 1 for arm in timed.arms.values()) and len(timed.arms) == 2

    before = times(results)
    third = ablate(grid_file, results)
    output, _ = third.communicate(timeout=120)
    assert "8 runs, 8 done, 0 to do" in output
    assert before == {
        path: path.stat().st_mtime_ns for path in (results / "runs").glob("??/*.json")
    }
