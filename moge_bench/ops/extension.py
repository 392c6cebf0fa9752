"""Loads the compiled libraries and decides which backend runs; nothing falls back silently."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from moge_bench.ops.loading import load_library
from moge_bench.system import digest_files

BACKENDS = ("auto", "extension", "reference")
OPS = (  # of csrc
    "route", "route_backward", "group_norm", "group_norm_backward", "expert_ffn",
    "expert_ffn_backward", "dispatch", "bias_activation", "bias_activation_backward", "combine",
    "combine_backward",
)  # fmt: skip
BUILD_HINT = "build it with `make build`, or `pip install --no-build-isolation -e .`"
CUDA_BUILD_HINT = "build it where nvcc is, with MOGE_CUDA=1: `MOGE_CUDA=1 make build`"


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """Return (the pybind11 module moge_bench._C or None, why it could not be used)."""
    module, problem = load_library("moge_bench._C")
    missing = [name for name in OPS if module is not None and not hasattr(torch.ops.moge, name)]
    if missing:
        return None, f"it is older than this moge_bench: it has no op {missing[0]}"
    return module, problem


@functools.cache
def load_cuda() -> tuple[ModuleType | None, str]:
    """Return (the module moge_bench._cuda or None, why it could not be loaded).

    Importing it registers the CUDA kernels of the ops that moge_bench._C defines; it needs no GPU.
    """
    module, error = load()
    return (None, error) if module is None else load_library("moge_bench._cuda")


def cuda_facts() -> dict[str, str]:
    """Return what moge_bench._cuda reports of its build; empty where it is not loaded."""
    module, _ = load_cuda()
    names = ("source_hash", "architectures", "nvcc", "torch_abi")
    return {} if module is None else {name: getattr(module, name) for name in names}


_MODULE, _ERROR = load()
_CUDA, _CUDA_ERROR = load_cuda()


def unusable_builds() -> Iterator[str]:
    """Yield a sentence for every library that lies there and does not load."""
    for name, module, problem, hint in (
        ("extension moge_bench._C", _MODULE, _ERROR, BUILD_HINT),
        ("CUDA library moge_bench._cuda", _CUDA, _CUDA_ERROR, CUDA_BUILD_HINT),
    ):
        if module is None and not problem.startswith("ModuleNotFoundError"):
            yield f"the {name} is not usable: {problem}; {hint}"
            return  # without the extension the CUDA library is not tried


def stale_build() -> str | None:
    """Return a sentence if csrc/ has changed since the extension was built, else None.

    Only a source checkout has csrc/; an installed wheel is never stale.
    """
    folder = Path(__file__).resolve().parents[2] / "csrc"
    if _MODULE is None or not folder.is_dir():
        return None
    return _stale("extension", _MODULE.build_info()["source_hash"], source_hash(folder))


def stale_cuda_build() -> str | None:
    """Return a sentence if csrc/cuda has changed since moge_bench._cuda was built, else None."""
    folder = Path(__file__).resolve().parents[2] / "csrc"
    if _CUDA is None or not folder.is_dir():
        return None
    return _stale("CUDA library", _CUDA.source_hash, cuda_source_hash(folder))


def _stale(what: str, built: str, found: str) -> str | None:
    if built == found:
        return None
    return f"csrc has changed since the {what} was built ({built}, now {found}): run `make build`"


def source_hash(folder: Path) -> str:
    """Return the digest of the extension's files below csrc/, as setup.py computes it."""
    return digest_files(
        [*_files(folder, ".cpp", ".h"), *_files(folder / "cpu", ".cpp", ".h")], folder
    )


def cuda_source_hash(folder: Path) -> str:
    """Return the digest of the CUDA library's files below csrc/, as setup.py computes it."""
    shared = [folder / name for name in ("kernels.h", "plan.cpp", "plan.h")]
    return digest_files([*shared, *_files(folder / "cuda", ".cpp", ".cu", ".cuh", ".h")], folder)


def _files(folder: Path, *suffixes: str) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix in suffixes)


for _sentence in (*unusable_builds(), stale_build(), stale_cuda_build()):
    if _sentence is not None:
        warnings.warn(_sentence, RuntimeWarning, stacklevel=2)


@functools.cache
def warn_once(message: str) -> None:
    """Warn of ``message`` the first time that it is said in this process."""
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def choose_backend(backend: str, tensor: torch.Tensor, op: str) -> str:
    """Return "extension" or "reference" for ``backend``, checked against what is built.

    "auto" takes the extension where it is built for the tensor's device, warns once where no
    extension is built at all, and raises ValueError where it has no kernel for the tensor's device
    or dtype: there the slow path is the caller's choice. "extension" raises ValueError in every
    such case. What ran is part of every result.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "reference":
        return backend
    problem = _missing_kernel(tensor, op)
    if problem is None:
        return "extension"
    if backend == "auto" and _MODULE is None:
        warn_once(f"backend='auto' runs the slow reference: {problem}")
        return "reference"
    raise ValueError(f"backend={backend!r}: {problem}")


def find_op(name: str) -> Callable[..., Any]:
    """Return moge::``name``, one of the router's ops, to be called with positional arguments.

    Called from C++, past the matching of arguments to the schema in torch.ops, a good part of a
    call on few tokens; where torch.compile reads, as torch.ops knows it. Both go through torch's
    dispatcher.
    """
    if torch.compiler.is_compiling():
        return getattr(torch.ops.moge, name)
    return getattr(_MODULE.ops, name)  # type: ignore[union-attr]


def _missing_kernel(tensor: torch.Tensor, op: str) -> str | None:
    """Return why there is no compiled kernel of ``op`` for ``tensor``, or None if there is."""
    if _MODULE is None:
        return f"the extension moge_bench._C is not usable ({_ERROR}); {BUILD_HINT}"
    if tensor.is_cpu or tensor.is_meta:
        return None
    if not tensor.is_cuda:
        return (
            f"moge::{op} has kernels for CPU and CUDA tensors only, got a tensor on "
            f"{tensor.device}; move it to the CPU or pass backend='reference'"
        )
    if _CUDA is None:
        return (
            f"moge::{op} got a tensor on {tensor.device}, and the CUDA library moge_bench._cuda "
            f"is not usable ({_CUDA_ERROR}); {CUDA_BUILD_HINT}, move the tensor to the CPU or "
            "pass backend='reference'"
        )
    if tensor.dtype == torch.float64:
        return (
            f"moge::{op} computes in float32 on CUDA and takes float32, float16 and bfloat16 "
            "there, got torch.float64; call .float() first or pass backend='reference'"
        )
    return None
