"""Fuzzes the readers of files, guided by the coverage of their Python (atheris), one by one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.reliability.fuzz_targets import TARGETS
from tools.reliability.sanitized import HOME, ROOT

FOLDER = HOME / "fuzz"
# "#1200 DONE cov: 700 ft: 1500 corp: 90/12Kb ...": branches reached, and features of them.
_STATE = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def run(minutes: float, folder: Path = FOLDER) -> dict[str, Any]:
    """Share ``minutes`` among the targets; return the figures of each."""
    seconds = max(1, round(minutes * 60 / len(TARGETS)))
    return {
        "minutes": minutes, "seconds_each": seconds,
        "targets": {name: _one(name, seconds, folder / name) for name in TARGETS},
    }  # fmt: skip


def _one(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "tools.reliability.fuzz_worker", name, str(seconds), str(folder)],
        cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    counts_file = folder / "counts.json"
    if not counts_file.is_file():
        raise RuntimeError(f"fuzzing {name} did not begin: {said[-1000:]}")
    counts = json.loads(counts_file.read_text())
    states = _STATE.findall(said)
    if states:
        counts |= dict(zip(("branches", "features", "corpus"), map(int, states[-1]), strict=True))
    if ran := re.findall(r"^Done (\d+) runs", said, re.MULTILINE):
        counts["executions"] = int(ran[-1])
    if done.returncode != 0:  # a crash of the process itself, or an input that takes a minute
        counts["findings"][f"it ended with {done.returncode}"] = said[-1000:]
    return counts
