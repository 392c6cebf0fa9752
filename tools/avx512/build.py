"""Builds the extension with its AVX-512 kernels emulated, for a processor that has AVX2 alone.

The kernels' sources are compiled as they are, but for the compiler's intrinsics, in whose place
they include SIMDe's (emulated.h), and linked with the objects that the extension is made of. So
what no processor at hand can run is run: slowly, and bit for bit.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from moge_bench.ops.extension import stale_build
from moge_bench.system import cxx_command

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc/cpu"
OBJECTS = ROOT / f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "csrc"
INTRINSICS = "#include <immintrin.h>"
TARGET = '#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")'
RUNS_HERE = 'if (name == "avx512") {'  # of dispatch.cpp
FLAGS = [
    "-std=c++17", "-O1", "-fPIC", "-fopenmp", "-mavx2", "-mfma", "-mf16c", "-ffp-contract=off",
    "-fno-math-errno", "-Wno-psabi", "-w",
]  # fmt: skip


def what_is_missing() -> str | None:
    """Say what keeps the emulated library from being built here, or return None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "a processor of x86-64"
    # clang's SIMDe and its target attributes would be others: not tried.
    probe = [*cxx_command(), "-x", "c++", "-dM", "-E", "-include", "simde/x86/avx512.h", os.devnull]
    found = subprocess.run(probe, capture_output=True, text=True)
    if found.returncode:
        return "SIMDe's headers (Debian: libsimde-dev)"
    if "__clang__" in found.stdout:
        return "gcc"
    missing = [path for path in _objects() if not path.exists()]
    if missing or stale_build() is not None:
        return f"the extension's objects, up to date, below {OBJECTS.relative_to(ROOT)}"
    return None


def _objects() -> list[Path]:
    """Return what the extension is made of: an object for each source."""
    sources = [*(ROOT / "csrc").glob("*.cpp"), *CSRC.glob("*.cpp")]
    return [
        (OBJECTS / source.relative_to(ROOT / "csrc")).with_suffix(".o")
        for source in sorted(sources)
    ]


def _run(what: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} fails with SIMDe:\n{done.stderr[-4000:]}")


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"expected {old!r} once in the source, found it {text.count(old)} times")
    return text.replace(old, new)


def _sources(folder: Path) -> list[Path]:
    """Write the sources that differ into ``folder`` and return their paths."""
    written = []
    for name in ("kernels_avx512.cpp", "experts_avx512.cpp"):
        text = _replaced((CSRC / name).read_text(), INTRINSICS, '#include "emulated.h"')
        written.append(folder / name)
        written[-1].write_text(_replaced(text, TARGET, ""))
    text = (CSRC / "dispatch.cpp").read_text()
    written.append(folder / "dispatch.cpp")
    written[-1].write_text(
        _replaced(text, RUNS_HERE, 'if (name == "avx512") return true; if (false) {')
    )
    return written


def build(folder: Path) -> Path:
    """Make ``folder`` a place to import moge_bench from, its AVX-512 kernels emulated.

    Raises:
        RuntimeError: a source does not compile, or the objects do not link; with what was said.
        ValueError: a source is no longer as this file knows it.
    """
    headers = [f"-I{path}" for path in (Path(__file__).parent, ROOT / "csrc", CSRC)]
    sources = _sources(folder)

    def compiled(source: Path) -> Path:
        to = source.with_suffix(".o")
        _run(source.name, [*cxx_command(), *FLAGS, *headers, "-c", str(source), "-o", str(to)])
        return to

    with ThreadPoolExecutor() as pool:
        emulated = list(pool.map(compiled, sources))
    others = [path for path in _objects() if not (folder / path.name).exists()]
    package = folder / "moge_bench"
    package.mkdir()
    for path in (ROOT / "moge_bench").iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    library = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    torch_lib = Path(torch.__file__).parent / "lib"
    _run(
        "linking",
        [*cxx_command(), "-shared", "-fopenmp", *map(str, [*others, *emulated]), f"-L{torch_lib}",
         "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-o", str(library)],
    )  # fmt: skip
    return folder
