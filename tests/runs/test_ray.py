"""A grid on a ray cluster of two workers: complete, and nothing twice, though one is killed."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest

from moge_bench.presets import resolve
from moge_bench.runs.executors.ray import _resources, run_on_ray
from moge_bench.runs.store import RecordStore

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'moge-bench[ray]'")

# Long enough to be killed in the middle, a few seconds.
LONG = {
    "training.steps": 150, "training.batch_size": 8, "training.warmup_steps": 1, "model.depth": 1,
    "data.evaluate_test": False,
}  # fmt: skip


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def busy_workers():
    """Return the processes of the cluster that execute a run: ray names them after it."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "_remote_run" in " ".join(process.cmdline()):
                workers.append(process)
    return workers


@pytest.mark.slow
def test_a_killed_worker_costs_no_run(cluster, tmp_path):
    configs = [resolve("tiny-vit", "dense", LONG, seed) for seed in range(4)]
    killed = []

    def kill_one():
        while not killed:
            for worker in busy_workers()[:1]:
                time.sleep(1.0)
                with contextlib.suppress(psutil.NoSuchProcess):
                    os.kill(worker.pid, signal.SIGKILL)
                    killed.append(worker.pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    ends = list(run_on_ray(configs, RecordStore(tmp_path), jobs=2))
    killer.join(5)
    assert killed
    assert sorted(end.config.seed for end in ends) == [0, 1, 2, 3]
    assert {end.status for end in ends} == {"finished"}
    store = RecordStore(tmp_path)
    assert [store.read(config.run_id).status for config in configs] == ["finished"] * 4
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 4
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_run_asks_for_its_threads_and_its_part_of_a_gpu():
    config = resolve("tiny-vit", "moe", {"training.threads": 3})
    assert _resources(config) == {"num_cpus": 3, "num_gpus": 0}
    on_gpu = config.model_copy(update={"device": "cuda"})
    # Four runs at a time on one GPU.
    assert _resources(on_gpu)["num_gpus"] == 0.25
