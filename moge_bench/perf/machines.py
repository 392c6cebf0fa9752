"""On what a figure was measured, as a key: figures with different keys are never compared.

Times depend on the processor, the instruction set that torch and the kernels take, the cores, the
compiler and torch; on a GPU on the device, its driver and torch. Counts of instructions are of one
compiler's code for fixed instruction sets: they depend on the compiler alone, so that they go on
from one hired machine to the next (measured: all 36 counts of 27d4d0f are equal on an AVX-512 and
on an AVX2 processor, with g++ 12.2.0).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from moge_bench.system import cxx_command, cxx_program

UNKNOWN = "unknown machine"


def compiler_version() -> str:
    """Return the compiler of the extension and its version: "g++ 12.2.0"; "unknown" without one."""
    try:
        done = subprocess.run(
            [*cxx_command(), "-dumpfullversion", "-dumpversion"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown compiler"
    return f"{os.path.basename(cxx_program())} {done.stdout.strip()}"


def machine(facts: Mapping[str, Any], compiler: str) -> str:
    """Return the key of times measured under ``facts`` (`rows.environment`) with ``compiler``."""
    if "driver" in facts:
        parts = [facts["device"], f"driver {facts['driver']}", f"torch {facts['torch']}"]
    else:
        parts = [facts["device"], str(facts["capability"]).lower(), f"{facts['cpus']} cores",
                 compiler, f"torch {facts['torch']}"]  # fmt: skip
    return ", ".join(parts)


def toolchain(compiler: str) -> str:
    """Return the key of instruction counts of what ``compiler`` made."""
    return f"instruction counts, {compiler}"
