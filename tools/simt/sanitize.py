"""Runs the checks of every_check.py in a process that a sanitizer watches: make sanitize.

python -m tools.simt.sanitize [STEP] runs every STEP-th of each kind under AddressSanitizer with
UndefinedBehaviorSanitizer, then under ThreadSanitizer; a report ends the run with its text.
"""

from __future__ import annotations

import subprocess
import sys

from tools.simt import build

MODES = ("asan", "tsan")


def run(mode: str, step: int) -> subprocess.CompletedProcess[str]:
    """Run every ``step``-th check of each kind in the build of ``mode``; return what ran."""
    return subprocess.run(
        [sys.executable, "-m", "tools.simt.every_check", mode, str(step)],
        env=build.environment(mode), capture_output=True, text=True, check=False,
    )  # fmt: skip


if __name__ == "__main__":
    step = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for mode in MODES:
        done = run(mode, step)
        print(done.stdout, done.stderr, sep="", end="", flush=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
