"""Loads the compiled extension and decides which backend runs; nothing falls back silently."""

from __future__ import annotations

import functools
import hashlib
import importlib
import warnings
from pathlib import Path
from types import ModuleType

import torch

BACKENDS = ("auto", "extension", "reference")
BUILD_HINT = "build it with `make build`, or `pip install --no-build-isolation -e .`"


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """Return (the pybind11 module moge_bench._C or None, why it could not be loaded)."""
    try:
        return importlib.import_module("moge_bench._C"), ""
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


_MODULE, _ERROR = load()


def stale_build() -> str | None:
    """Return a sentence if csrc/ has changed since the extension was built, else None.

    Only a source checkout has csrc/; an installed wheel is never stale.
    """
    folder = Path(__file__).resolve().parents[2] / "csrc"
    if _MODULE is None or not folder.is_dir():
        return None
    built, found = _MODULE.build_info()["source_hash"], source_hash(folder)
    if built == found:
        return None
    return (
        f"csrc has changed since the extension was built ({built}, now {found}): run `make build`"
    )


def source_hash(folder: Path) -> str:
    """Return the digest of the extension's files below csrc/, as setup.py computes it."""
    found = [f for d in (folder, folder / "cpu") for f in d.iterdir() if f.suffix in (".cpp", ".h")]
    digest = hashlib.sha256()
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


if (_stale := stale_build()) is not None:
    warnings.warn(_stale, RuntimeWarning, stacklevel=2)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def choose_backend(backend: str, tensor: torch.Tensor, op: str) -> str:
    """Return "extension" or "reference" for ``backend``, checked against what is built.

    "auto" takes the extension where it is built for the tensor's device and warns once where it
    is not; "extension" raises ValueError there instead. What ran is part of every result.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "reference":
        return backend
    if _MODULE is None:
        problem = f"the extension moge_bench._C is not usable ({_ERROR}); {BUILD_HINT}"
    elif tensor.device.type not in ("cpu", "meta"):
        problem = (
            f"moge::{op} is built for CPU tensors only, got a tensor on {tensor.device}; "
            "move it to the CPU or pass backend='reference'"
        )
    else:
        return "extension"
    if backend == "extension":
        raise ValueError(f"backend='extension': {problem}")
    if _MODULE is not None:
        # A device the extension does not know: an explicit choice, never a silent slow path.
        raise ValueError(f"backend='auto': {problem}")
    _warn_once(f"backend='auto' runs the slow reference: {problem}")
    return "reference"
