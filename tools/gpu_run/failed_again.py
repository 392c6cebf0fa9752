"""Run each failed test of a junit file alone, with blocking launches: which fail by themselves?"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor

MOST = 12


def failed_tests(junit: str) -> list[str]:
    """Return the pytest ids of the failed tests of a junit file."""
    return [
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in ElementTree.parse(junit).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]


def run_alone(test: str) -> str:
    """Run one test in a process of its own; return its exit code and, where it failed, why."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
               "--tb=short", test]  # fmt: skip
    blocking = os.environ | {"CUDA_LAUNCH_BLOCKING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=blocking)
    return f"ALONE rc={done.returncode} {test}\n" + (done.stdout[-3500:] if done.returncode else "")


def main() -> None:
    """Print what the first ``MOST`` failed tests do alone."""
    tests = failed_tests(sys.argv[1])
    print(f"{len(tests)} failed; run alone: {min(len(tests), MOST)}")
    with ThreadPoolExecutor(6) as pool:
        for text in pool.map(run_alone, tests[:MOST]):
            print(text, flush=True)


if __name__ == "__main__":
    main()
