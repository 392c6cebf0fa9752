"""What a run ran on: code, library versions, machine, build of the extension."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from moge_bench import __version__
from moge_bench.ops import extension
from moge_bench.system import available_cores, cpu_name, digest_files, run_git

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
# What a result can depend on; results and documents may change without making a run "dirty".
CODE = ("moge_bench", "csrc", "setup.py", "pyproject.toml", "constraints.txt")
LIBRARIES = ("numpy", "accelerate", "transformers", "tokenizers", "pydantic", "pillow")
# The Python that can change what a run computes: nothing here formats, times or reads records.
_COMPUTES = (
    "config/data.py", "config/models.py", "config/schema.py",
    "ops", "routing", "moe", "models", "data", "training",
)  # fmt: skip


def code_version() -> dict[str, Any]:
    """Return {"commit", "dirty", "digest"}; None for the first two outside a git checkout."""
    version: dict[str, Any] = {"commit": None, "dirty": None, "digest": code_digest()}
    try:
        top = run_git(CHECKOUT, "rev-parse", "--show-toplevel").decode().strip()
        if Path(top).resolve() == CHECKOUT:
            version["commit"] = run_git(CHECKOUT, "rev-parse", "HEAD").decode().strip()
            version["dirty"] = bool(run_git(CHECKOUT, "status", "--porcelain", "--", *CODE))
    except ValueError:
        pass
    return version


@functools.cache
def code_digest() -> str:
    """Return a digest of the code that can change a result: that Python, and the kernels' build."""
    files = [
        file
        for part in _COMPUTES
        for file in (
            [PACKAGE / part] if (PACKAGE / part).is_file() else (PACKAGE / part).rglob("*.py")
        )
    ]
    facts = extension_build() or {}
    builds = [facts.get("source_hash", "reference"), facts.get("cuda_source_hash")]
    return "-".join([digest_files(files, PACKAGE), *filter(None, builds)])


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


def machine() -> dict[str, Any]:
    """Return the platform, the processor, how many of its cores are ours, GPU and its driver."""
    return {
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu": cpu_name(),
        "cores": available_cores(),
        "instruction_set": instruction_set(),
        **_gpu(),
    }


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpu": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpus": torch.cuda.device_count(),
        "gpu_driver": gpu_driver(),
    }


@functools.cache
def gpu_driver() -> str | None:
    """Return the release of NVIDIA's driver, "580.95.05", or None where nothing tells it.

    From /proc, or from nvidia-smi, since torch knows the CUDA version of the driver alone.
    """
    try:
        told = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        try:
            told = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=60, check=False,
            ).stdout  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", told)
    return found[0] if found else None


def instruction_set() -> str | None:
    """Return the instruction set that moge_bench._C runs with, or None where it is not built."""
    module, _ = extension.load()
    return None if module is None else module.instruction_set()


def extension_build() -> dict[str, Any] | None:
    """Return the build facts of moge_bench._C as it reports them, or None where it is not built.

    Where there is a GPU those of moge_bench._cuda too, each as "cuda_<name>".
    """
    module, _ = extension.load()
    if module is None:
        return None
    cuda = extension.cuda_facts() if torch.cuda.is_available() else {}
    return {**module.build_info(), **{f"cuda_{name}": value for name, value in cuda.items()}}


def peak_rss_mib() -> float:
    """Return the largest resident size this process has had, in MiB.

    Linux's VmHWM is read where it exists: unlike ru_maxrss it does not carry over what the parent
    had resident when it started this process. psutil has the size of now, and a peak on Windows
    only.
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
