"""What is built, which backends really run, which data are found: every check is a real try."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from dataclasses import dataclass

import torch

from moge_bench import __version__
from moge_bench.data.assets import ASSETS
from moge_bench.ops import extension, self_check
from moge_bench.system import cxx_program

_SUITE = (
    "accelerate",
    "pandas",
    "pydantic",
    "rich",
    "tabulate",
    "tokenizers",
    "transformers",
    "typer",
)
OPS = ("route", "group_norm", "expert_ffn")
_OPTIONAL = {"datasets": "hub", "ray": "ray"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report; ``ok`` None marks a fact that cannot be wrong."""

    name: str
    ok: bool | None
    detail: str


def run_checks() -> list[Check]:
    """Return every check in order; none of them raises, none writes a file."""
    return [
        Check("moge-bench", None, __version__),
        Check("python", sys.version_info >= (3, 10), sys.version.split()[0]),
        Check("torch", None, f"{torch.__version__}, {torch.get_num_threads()} threads"),
        _compiler(),
        _extension(),
        *(_compare(op) for op in OPS),
        _cuda_library(),
        *_cuda_devices(),
        *(_asset(name) for name in ASSETS),
        *(_library(name) for name in _SUITE),
        *(_optional(name, extra) for name, extra in _OPTIONAL.items()),
    ]


def _compiler() -> Check:
    found = shutil.which(cxx_program()) or shutil.which("c++")
    return Check("compiler", None, found or "none found: needed to build, not to run")


def _extension() -> Check:
    module, problem = extension.load()
    if module is None:
        return Check("extension", False, f"{problem}; {extension.BUILD_HINT}")
    build = module.build_info()
    detail = (
        f"build {build['source_hash']}, {build['compiler']}, torch {build['torch']}; built for "
        f"{build['instruction_sets']}; runs {module.instruction_set()}"
    )
    stale = extension.stale_build()
    return Check("extension", stale is None, f"{detail}; {stale}" if stale else detail)


def _cuda_library() -> Check:
    """Say what moge_bench._cuda was built for; it is optional, so its absence is no failure."""
    if extension.load()[0] is None:
        return Check("cuda library", None, "not tried: it needs the extension")
    module, problem = extension.load_cuda()
    if module is None:
        hint = f"not usable ({problem}): CUDA tensors raise an error; {extension.CUDA_BUILD_HINT}"
        return Check("cuda library", None, hint)
    detail = (
        f"build {module.source_hash}, nvcc {module.nvcc}, for {module.architectures}, torch "
        f">= {module.torch_abi}"
    )
    stale = extension.stale_cuda_build()
    return Check("cuda library", stale is None, f"{detail}; {stale}" if stale else detail)


def _cuda_devices() -> list[Check]:
    """Run the kernels on every GPU that is here, or say why none can run."""
    if not torch.cuda.is_available():
        reason = "this torch is a CPU build" if torch.version.cuda is None else "torch sees no GPU"
        return [Check("cuda device", None, f"no CUDA kernel can run here: {reason}")]
    if extension.load_cuda()[0] is None:
        return [Check("cuda device", None, "a GPU is here, and the CUDA library is not built")]
    checks = []
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        checks.append(Check(device, None, torch.cuda.get_device_name(index)))
        checks += [_compare(op, device) for op in OPS]
    return checks


def _compare(op: str, device: str = "cpu") -> Check:
    """Run ``op`` forward and backward on both backends, on every case of ops.self_check."""
    name = op if device == "cpu" else f"{op} {device}"
    try:
        return Check(name, True, self_check.compare(op, device))
    except self_check.DifferenceError as error:
        return Check(name, False, str(error))


def _asset(name: str) -> Check:
    try:
        return Check(f"data {name}", True, str(ASSETS[name].check().name))
    except ValueError as error:
        return Check(f"data {name}", False, str(error))


def _library(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed: pip install 'moge-bench[suite]'")


def _optional(name: str, extra: str) -> Check:
    try:
        return Check(name, None, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, None, f"not installed (optional): pip install 'moge-bench[{extra}]'")
