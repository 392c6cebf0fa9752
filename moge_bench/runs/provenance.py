"""What a run ran on: code, library versions, machine, build of the extension."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from moge_bench import __version__
from moge_bench.ops import extension

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
# What a result can depend on; results and documents may change without making a run "dirty".
CODE = ("moge_bench", "csrc", "setup.py", "pyproject.toml", "constraints.txt")
LIBRARIES = ("numpy", "accelerate", "transformers", "pydantic")
# The Python that runs inside a timed training step.
_TIMED = ("config", "ops", "routing", "moe", "models", "training")


def code_version() -> dict[str, Any]:
    """Return {"commit", "dirty"}; None for both where the package is not in a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != CHECKOUT:
            return {"commit": None, "dirty": None}
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", *CODE)),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def versions() -> dict[str, str]:
    """Return the versions of Python, torch, this package and the libraries a run goes through."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "moge_bench": __version__,
    }
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def cpu_model() -> str:
    """Return the processor's marketing name, or the architecture where it is not told."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return the platform, the processor and how many of its cores this process may use."""
    return {
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu": cpu_model(),
        "cores": available_cores(),
    }


def available_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def extension_build() -> dict[str, Any] | None:
    """Return the build facts of moge_bench._C as it reports them, or None where it is not built."""
    module, _ = extension.load()
    return None if module is None else dict(module.build_info())


@functools.cache
def timed_code_hash() -> str:
    """Return a digest of the Python files that run inside a timed training step."""
    digest = hashlib.sha256()
    for part in _TIMED:
        path = PACKAGE / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def peak_rss_mib() -> float:
    """Return the largest resident size this process has had, in MiB.

    Linux's VmHWM is read where it exists: unlike ru_maxrss it does not carry over what the parent
    had resident when it started this process.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
