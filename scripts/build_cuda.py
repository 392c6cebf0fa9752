"""Builds moge_bench._cuda, the CUDA library; setup.py calls it.

nvcc and any torch suffice, for the library knows torch by its stable ABI alone: a CPU build too, or
one for another CUDA than nvcc's. CUDAExtension refuses both, so ninja hands the sources to nvcc.
What is built depends on the toolkit and on MOGE_CUDA, never on a GPU being there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[1]
NAME = "moge_bench._cuda"
FOLDER = ROOT / "csrc/cuda"
BUILD = ROOT / "build/cuda"  # not setuptools' own folder, which an editable install throws away
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
HOST_FLAGS = ["-fvisibility=hidden", "-Wall"]
# The oldest torch that the library runs with: 2.10 gave the stable ABI what a kernel needs.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
LIMITED_API = "-DPy_LIMITED_API=0x030a0000"  # Python 3.10

RULES = """\
builddir = {builddir}
rule compile
  command = {nvcc} $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $in
rule link
  command = {nvcc} -shared -cudart static -gencode=arch=compute_{first},code=sm_{first} \
-o $out $in {libraries}
  description = link $out
"""


def find_nvcc() -> str | None:
    """Return the path of nvcc, from CUDA_HOME, CUDA_PATH or PATH, or None."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        found = os.environ.get(variable) and shutil.which(f"{os.environ[variable]}/bin/nvcc")
        if found:
            return found
    return shutil.which("nvcc")


def wanted() -> bool:
    """Return whether MOGE_CUDA and the toolkit ask for the library; exit where they disagree."""
    choice = os.environ.get("MOGE_CUDA") or "auto"
    if choice not in ("auto", "0", "1"):
        sys.exit(f"moge-bench: MOGE_CUDA must be auto, 1 or 0, got {choice!r}.")
    if choice == "1" and find_nvcc() is None:
        sys.exit(
            "moge-bench: MOGE_CUDA=1 needs nvcc, found neither in CUDA_HOME nor on PATH; install "
            "the CUDA toolkit (12.8 or later), or set MOGE_CUDA=0 to build for the CPU only."
        )
    return choice != "0" and find_nvcc() is not None


def architectures() -> list[str]:
    """Return the entries of TORCH_CUDA_ARCH_LIST, such as "9.0" or "10.0+PTX"."""
    entries = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES)
    for entry in entries:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            sys.exit(
                "moge-bench: TORCH_CUDA_ARCH_LIST must hold architectures like '8.0;9.0;10.0+PTX', "
                f"got {entry!r}."
            )
    return entries


def numbers(entries: list[str]) -> list[str]:
    """Return the architectures as nvcc writes them: "10.0+PTX" -> "100"."""
    return [entry.removesuffix("+PTX").replace(".", "") for entry in entries]


def gencode(entries: list[str]) -> list[str]:
    """Return nvcc's flags for the architectures."""
    flags = []
    for entry, number in zip(entries, numbers(entries), strict=True):
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def nvcc_version(nvcc: str) -> str:
    """Return nvcc's release, such as "13.0"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release ([\d.]+)", text)
    return match[1] if match else "unknown"


def sources() -> list[Path]:
    """Return the files to compile: binding, launchers, and the plan they share with the CPU."""
    return [ROOT / "csrc/plan.cpp", *sorted(FOLDER.glob("*.cpp")), *sorted(FOLDER.glob("*.cu"))]


def facts(source_hash: str) -> dict[str, str]:
    """Return the macros that the binding reports as build facts."""
    nvcc = find_nvcc()
    assert nvcc is not None  # wanted() is asked first
    return {
        "MOGE_CUDA_SOURCE_HASH": source_hash,
        "MOGE_CUDA_ARCHITECTURES": " ".join(architectures()),
        "MOGE_CUDA_NVCC": nvcc_version(nvcc),
    }


def extension(generated: Path) -> Extension:
    """Return the extension for setup(); ``generated`` holds the header of the build facts."""
    names = [str(path.relative_to(ROOT)) for path in sources()]
    folders = [str(ROOT / "csrc"), str(generated)]
    # As `depends`: at a .cu among the sources BuildExtension asks torch for its CUDA.
    return Extension(NAME, [], depends=names, include_dirs=folders, py_limited_api=True)


def write_if_changed(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` unless it stands there, so that ninja sees only real changes."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def ninja() -> list[str]:
    """Return the command of ninja: the Python package's, which setup asks for, else PATH's.

    One choice whatever PATH is: another ninja does not read the log of the first one, and would
    compile everything again.
    """
    found = shutil.which("ninja")
    if importlib.util.find_spec("ninja") is None and found:
        return [found]
    return [sys.executable, "-m", "ninja"]


def including(folders: list[str]) -> list[str]:
    """Return the flags that let the compiler include from ``folders``."""
    return [f"-I{shlex.quote(folder)}" for folder in folders]


def build(library: Extension) -> Path:
    """Compile and link ``library`` with nvcc under ninja; return its path.

    Only what changed is compiled again, on as many cores as MAX_JOBS allows.
    """
    nvcc = find_nvcc()
    assert nvcc is not None
    host = " ".join(["-Xcompiler", ",".join([*HOST_FLAGS, "-fPIC"])])
    common = ["-O3", host, *including(library.include_dirs)]
    # Device code must not need torch: it is not even told where torch is.
    binding = [*including([sysconfig.get_path("include"), *include_paths()]), STABLE_ABI]
    flags = {
        ".cpp": ["-std=c++20", *common, *binding, LIMITED_API],
        ".cu": ["-std=c++17", *common, *gencode(architectures())],
    }
    libraries = [*(f"-L{shlex.quote(folder)}" for folder in library_paths()), "-ltorch_cpu"]
    folder = BUILD.relative_to(ROOT)
    rules = RULES.format(
        builddir=folder, nvcc=shlex.quote(nvcc), libraries=" ".join(libraries),
        first=numbers(architectures())[0],
    )  # fmt: skip
    lines, objects = [rules], []
    for source in library.depends:
        objects.append(f"{folder}/{Path(source).stem}.o")
        lines.append(f"build {objects[-1]}: compile {source}")
        lines.append(f"  flags = {' '.join(flags[Path(source).suffix])}")
    lines.append(f"build {folder}/_cuda.so: link {' '.join(objects)}\n")
    write_if_changed(BUILD / "build.ninja", "\n".join(lines))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    subprocess.run([*ninja(), "-f", f"{folder}/build.ninja", *jobs], cwd=ROOT, check=True)
    return BUILD / "_cuda.so"
