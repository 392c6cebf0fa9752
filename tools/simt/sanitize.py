"""Runs the cases of simt_cases.py in a process that a sanitizer watches: make sanitize.

python simt_sanitize.py [STEP] runs every STEP-th case under AddressSanitizer with
UndefinedBehaviorSanitizer, then under ThreadSanitizer; a report ends the run with its text.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import simt_build

MODES = ("asan", "tsan")


def run(mode: str, step: int) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("simt_cases.py")
    return subprocess.run(
        [sys.executable, str(script), mode, str(step)],
        env=simt_build.environment(mode), capture_output=True, text=True, check=False,
    )  # fmt: skip


if __name__ == "__main__":
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for mode in MODES:
        done = run(mode, step)
        print(done.stdout, done.stderr, sep="", end="", flush=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
