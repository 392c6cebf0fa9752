"""Random cases of the ops under sanitizers: each must give what the reference gives.

The cases are divided among the instruction sets that this processor runs. A process that a
sanitizer ends is one finding, with its report; the next one goes on with the case after it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tools.reliability import sanitized

_MOST_CRASHES = 20
_REPORT = 1500  # characters of a report that are kept
# A write before a block of the heap: sanitizers that report nothing must be seen to work.
_FAULT = """
import ctypes
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.memset(ctypes.c_void_p(library.malloc(64) - 8), 0, 8)
"""


def check_sanitizers(environment: dict[str, str]) -> None:
    """Raise RuntimeError unless a process with a planted fault ends with a report of it."""
    done = _python(["-c", _FAULT], environment)
    if done.returncode == 0 or "ERROR: AddressSanitizer: heap-buffer-overflow" not in done.stderr:
        raise RuntimeError(f"the sanitizers miss a planted fault: {done.stderr[-_REPORT:]}")


def instruction_sets(environment: dict[str, str]) -> list[str]:
    """Return the compiled instruction sets that this processor runs, the smallest first."""
    program = "from moge_bench import _C; print(_C.build_info()['instruction_sets'])"
    names = _python(["-c", program], environment).stdout.strip().split(",")
    program = "from moge_bench import _C; _C.instruction_set()"
    return [
        name
        for name in names
        if _python(["-c", program], environment | {"MOGE_CPU_ISA": name}).returncode == 0
    ]


def run(count: int, seed: int, only: int | None = None) -> dict[str, Any]:
    """Run ``count`` cases of ``seed``, or case ``only`` alone; return the figures."""
    tree = sanitized.build()
    environment = sanitized.environment(tree)
    check_sanitizers(environment)
    sets = instruction_sets(environment)
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    for place, name in enumerate(sets):
        first, last = (place, count) if only is None else (only, only + 1)
        if only is not None and only % len(sets) != place:
            continue
        done, found = _of_one_set(
            seed, first, len(sets), last, environment | {"MOGE_CPU_ISA": name}
        )
        counts += done
        findings += [{"instruction_set": name, **each} for each in found]
    return {
        "cases": sum(counts.values()), "seed": seed, "of": dict(sorted(counts.items())),
        "instruction_sets": sets, "flags": sanitized.FLAGS,
        "large": _large(environment) if only is None else None, "findings": findings,
    }  # fmt: skip


def _of_one_set(
    seed: int, first: int, step: int, count: int, environment: dict[str, str]
) -> tuple[Counter[str], list[dict[str, Any]]]:
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    while first < count and len(findings) < _MOST_CRASHES:
        folder = Path(tempfile.mkdtemp(prefix="reliability-"))
        done = _python(
            ["-m", "tools.reliability.worker", *map(str, (seed, first, step, count)), str(folder)],
            environment,
        )
        if (folder / "found").is_file():
            findings += map(json.loads, (folder / "found").read_text().splitlines())
        if done.returncode == 0:
            counts += Counter(json.loads((folder / "counts").read_text()))
            first = count
        else:
            index = int((folder / "at").read_text()) if (folder / "at").is_file() else first
            report = (done.stdout + done.stderr)[-20_000:]
            place = max(report.find("ERROR: AddressSanitizer"), report.find("runtime error:"), 0)
            findings.append({"index": index, "what": report[place : place + _REPORT]})
            counts["ended by a report"] += (index - first) // step + 1
            first = index + step
        shutil.rmtree(folder)
    return counts, findings


def _large(environment: dict[str, str]) -> str:
    done = _python(["-m", "tools.reliability.large"], environment)
    return done.stdout.strip() or f"failed: {done.stderr[-_REPORT:]}"


def _python(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # Not in the checkout: the moge_bench of the current folder would come first.
    return subprocess.run(
        [sys.executable, *arguments], cwd=os.path.sep, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
