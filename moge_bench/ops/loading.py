"""Loads a compiled library, or says in one sentence why it does not fit what runs."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

# A string in moge_bench._C (csrc/registration.cpp), since what does not load cannot be asked.
MARKER = re.compile(rb"moge_bench\._C is built for torch (\d+\.\d+)")


def load_library(name: str) -> tuple[ModuleType | None, str]:
    """Return (the module ``name`` or None, why it could not be loaded).

    A library that was built for another minor version of torch is not even tried: where all its
    symbols happen to be there it would load and crash later.
    """
    problem = misfit(name)
    if problem is not None:
        return None, problem
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        symbol = re.search(r"undefined symbol: (\w+)", str(error))
        if symbol is None:
            return None, f"{type(error).__name__}: {error}"
        return None, (
            f"it was built for another torch than {torch.__version__}, which runs and has no "
            f"{symbol[1]}"
        )


def misfit(name: str) -> str | None:
    """Return a sentence if all that lies there of ``name`` is for another Python or torch."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        parent, _, stem = name.rpartition(".")
        folder = Path(sys.modules[parent].__file__ or "").parent
        built = python_of_builds(folder, stem)
        runs = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"it was built for Python {built}, and {runs} runs" if built else None
    found = MARKER.search(Path(spec.origin).read_bytes())
    if found is None:
        return None
    built = found[1].decode()
    runs = ".".join(torch.__version__.split(".")[:2])
    return (
        None if built == runs else f"it was built for torch {built}, and {torch.__version__} runs"
    )


def python_of_builds(folder: Path, stem: str) -> str:
    """Return the Pythons that the builds of ``stem`` in ``folder`` are for, if not for this one."""
    names = [path.name.removeprefix(stem) for path in folder.glob(f"{stem}.*.so")]
    tags = [
        re.match(r"\.cpython-(\d)(\d+)", name) for name in names if name not in EXTENSION_SUFFIXES
    ]
    return " and ".join(sorted(f"{tag[1]}.{tag[2]}" for tag in tags if tag))
