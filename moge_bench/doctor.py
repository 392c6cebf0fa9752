"""What is built, which backends really run, which data are found: every check is a real try."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moge_bench import __version__, group_norm, route
from moge_bench.data.assets import ASSETS
from moge_bench.ops import extension

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
        _compare("route", _route_gradients),
        _compare("group_norm", _group_norm_gradients),
        Check("cuda", None, "no CUDA kernel is built yet; CUDA tensors raise a clear error"),
        *(_asset(name) for name in ASSETS),
        *(_library(name) for name in _SUITE),
        *(_optional(name, extra) for name, extra in _OPTIONAL.items()),
    ]


def _compiler() -> Check:
    found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
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


def _compare(op: str, gradients: Callable[[str], list[torch.Tensor]]) -> Check:
    """Run ``op`` forward and backward on both backends and compare."""
    try:
        got, expected = gradients("extension"), gradients("reference")
    except Exception as error:
        return Check(op, False, f"{type(error).__name__}: {error}")
    worst = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    return Check(op, worst < 1e-5, f"extension against reference, worst difference {worst:.1e}")


def _route_gradients(backend: str) -> list[torch.Tensor]:
    logits = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    routing = route(logits, 2, backend=backend)
    (routing.weights[:, 0].sum() + routing.group_loss).backward()
    assert logits.grad is not None
    return [routing.weights.detach(), routing.group_loss.detach(), logits.grad]


def _group_norm_gradients(backend: str) -> list[torch.Tensor]:
    scores = torch.rand(100, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = group_norm(scores, backend=backend)
    loss.backward()
    assert scores.grad is not None
    return [loss.detach(), scores.grad]


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
