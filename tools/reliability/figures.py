"""The figures of each part, a file each below results/reliability, and of which code they are."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from moge_bench.perf import revisions
from moge_bench.system import available_cores, cpu_name, digest_files, write_atomically
from tools.reliability.sanitized import ROOT
from tools.simt.build import compiler_version

RESULTS = ROOT / "results/reliability"


def code_digest() -> str:
    """Return a digest of what the figures are of: the package, its kernels, and this tool."""
    folders = (ROOT / "moge_bench", ROOT / "csrc", Path(__file__).parent)
    suffixes = (".py", ".cpp", ".h", ".yaml", ".csv")
    files = [path for each in folders for path in each.rglob("*") if path.suffix in suffixes]
    return digest_files([*files, ROOT / "setup.py"], ROOT)


def facts() -> dict[str, Any]:
    """Return on what a part ran."""
    return {
        "commit": revisions.working_commit(ROOT), "code": code_digest(),
        "torch": torch.__version__, "python": platform.python_version(),
        "compiler": compiler_version(), "cpu": cpu_name(), "cores": available_cores(),
    }  # fmt: skip


def read(part: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the figures of ``part``, or None where it has none yet."""
    path = folder / f"{part}.json"
    found: dict[str, Any] | None = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    )
    return found


def is_done(part: str, arguments: dict[str, Any], folder: Path = RESULTS) -> bool:
    """Say whether ``part`` has its figures for this code and these arguments."""
    found = read(part, folder)
    return (
        found is not None
        and found["on"]["code"] == code_digest()
        and found["arguments"] == json.loads(json.dumps(arguments))
    )


def write(
    part: str, arguments: dict[str, Any], took: dict[str, float], found: dict[str, Any],
    on: dict[str, Any], folder: Path = RESULTS,
) -> None:  # fmt: skip
    """Write the figures of ``part``; ``on`` is what ``facts`` said before it began."""
    values = {
        "part": part, "arguments": arguments, "on": on, **took,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "found": found,
    }  # fmt: skip
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_atomically(folder / f"{part}.json", text + "\n")
