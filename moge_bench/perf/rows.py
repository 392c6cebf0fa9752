"""One benchmark row: typed, with units in its names, and no speed unless it proved itself."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from moge_bench.ops import extension
from moge_bench.runs.provenance import gpu_driver
from moge_bench.system import cpu_name, run_git

OK, WRONG, FALLBACK = "ok", "wrong", "fallback"
NOT_INSTALLED, NOT_APPLICABLE, ERROR = "not installed", "not applicable", "error"
FAILURES = (WRONG, FALLBACK, ERROR)


@dataclass
class Row:
    """One candidate on one case. Times and ratios are None unless ``status`` is "ok".

    ``ratio_to_ours`` is this candidate's time over that of ``ratio_against``, paired by round:
    above 1 ours is faster. ``kernel`` names what was seen to run, not what was asked for.
    """

    case: str
    candidate: str
    job: str
    status: str
    detail: str
    kernel: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    mismatches: int | None = None
    ties: int | None = None
    median_ms: float | None = None
    lower_quartile_ms: float | None = None
    upper_quartile_ms: float | None = None
    rounds: int = 0
    bytes_model: int | None = None
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    share_of_copy: float | None = None
    ratio_against: str = ""
    ratio_to_ours: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-able values."""
        return asdict(self)


def build_facts() -> dict[str, Any]:
    """Return what the extension and the CUDA library report of themselves, or why they cannot."""
    module, error = extension.load()
    if module is None:
        return {"extension": f"not built ({error})"}
    facts = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    values = {name: value() if callable(value) else value for name, value in facts.items()}
    simple = {k: v for k, v in values.items() if isinstance(v, (str, int, dict, list))}
    return simple | {f"cuda_{name}": value for name, value in extension.cuda_facts().items()}


def git_commit(root: Path) -> str:
    """Return the commit checked out at ``root``, "+dirty" appended where files differ from it."""
    try:
        commit = run_git(root, "rev-parse", "HEAD").decode().strip()
        return commit + ("+dirty" if run_git(root, "status", "--porcelain", "-uno") else "")
    except ValueError:
        return "unknown (not a git checkout)"


def environment(device: str) -> dict[str, Any]:
    """Return what a reader needs to judge a speed: device, versions, commit, build."""
    on_gpu = device.startswith("cuda")
    # bench.run_case sees to it that float32 is not rounded to TF32.
    gpu = {"driver": gpu_driver(), "tf32": False} if on_gpu else {}
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        **gpu,
        "cpus": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "commit": git_commit(Path(__file__).resolve().parents[2]),
        "build": build_facts(),
    }
