"""Kills a study at random moments, starts it again each time, and compares what it leaves.

``ablate`` runs in a process of its own and is ended by SIGKILL at a moment drawn from the time that
an undisturbed study takes, so that imports, training, saving, timing and tables are all hit. A
study that ends before its moment is compared, and the next one begins from nothing.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from moge_bench.runs.record import stable_part
from moge_bench.runs.store import RecordStore
from moge_bench.study.grid import parse_grid
from moge_bench.study.manifest import manifest_path, read_manifest
from tools.reliability.sanitized import ROOT

GRID = """
name: killed
question: Does a killed study leave what an undisturbed one leaves?
base:
  preset: tiny-vit
  data: fashion-mnist-subset
  seeds: [0, 1]
  set:
    training.steps: 8
    training.batch_size: 16
    training.warmup_steps: 1
    model.depth: 2
    model.patch_size: 14
    model.hidden_size: 16
    model.num_heads: 2
    model.ffn_size: 16
    moe.blocks: [1]
axes:
  method: [dense, moge]
table: {rows: method, metrics: top1_accuracy}
"""
_LONGEST_S = 1800


def run(kills: int, seed: int) -> dict[str, Any]:
    """Kill the study ``kills`` times; return the figures."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="reliability-") as temporary:
        folder = Path(temporary)
        grid = folder / "killed.yaml"
        grid.write_text(GRID)
        began = time.monotonic()
        _finish(_start(grid, folder / "undisturbed"))
        length = time.monotonic() - began
        wanted = _kept(folder / "undisturbed")
        results, studies = folder / "killed", 0
        moments: list[float] = []
        differing: list[str] = []
        while True:
            process = _start(grid, results)
            if len(moments) < kills:
                moment = rng.uniform(0, length)
                try:
                    process.wait(timeout=moment)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    moments.append(round(moment, 1))
                    continue
            _finish(process)
            studies += 1
            differing += [f"study {studies}: {each}" for each in _differences(results, wanted)]
            shutil.rmtree(results)
            if len(moments) == kills:
                break
    return {
        "kills": kills, "seed": seed, "undisturbed_s": round(length, 1), "moments_s": moments,
        "studies": studies, "runs_each": len(wanted), "differing": differing,
    }  # fmt: skip


def _start(grid: Path, results: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tools.reliability.ablate", "ablate", str(grid), "--results",
         str(results), "--jobs", "1"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait(timeout=_LONGEST_S) != 0:
        raise RuntimeError(f"the study ended with {process.returncode}")


def _kept(results: Path) -> dict[str, dict[str, Any]]:
    """Return run_id -> what of its record must be the same again (runs/record.py)."""
    store = RecordStore(results)
    found = {}
    for run_id in [run_id for _, _, run_id in parse_grid(GRID, "killed.yaml").runs]:
        record = store.read(run_id)
        found[run_id] = {} if record is None else stable_part(record)
    return found


def _differences(results: Path, wanted: dict[str, dict[str, Any]]) -> list[str]:
    """Return what differs from ``wanted``: a record, or a file that no undisturbed study leaves."""
    found = _kept(results)
    wrong = [f"record {run_id}" for run_id in wanted if found[run_id] != wanted[run_id]]
    litter = [*results.rglob(".*.tmp"), *(results / "checkpoints").glob("*")]
    wrong += [f"left {path.relative_to(results)}" for path in litter]
    run_ids = sorted(read_manifest(manifest_path(results, "killed")).run_ids)
    return wrong if run_ids == sorted(wanted) else [*wrong, "the manifest"]
