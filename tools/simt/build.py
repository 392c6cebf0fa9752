"""Compiles CUDA sources with g++ against the emulator, once per content: see simt.h.

Objects are named by the hash of a source, of the headers it includes and of the flags, so nothing
is compiled twice and nothing stale is loaded; they are written beside their name and renamed, so
that test processes may build at the same time.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moge_bench.system import cxx_command, cxx_flags, digest_files
from tools.includes import included_files

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build/simt"
Job = tuple[Path, list[str]]  # a source and its flags
RUNTIME = sorted(Path(__file__).parent.glob("*.cpp"))
FOLDERS = (ROOT / "csrc", ROOT / "csrc/cuda", ROOT / "tools")  # of headers

# -g1 is what the lines of reports need. Instantiations are many: AddressSanitizer's code at -O1
# takes three times as long to compile, and runs too few cases to earn that back.
BASE = ["-std=c++17", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
        "-ffp-contract=off", *(f"-I{folder}" for folder in FOLDERS)]  # fmt: skip
# Of the kernels; of kernels and runtime; of the linker. trace has no sanitizer to link against:
# its runtime defines the functions that the compiler calls.
MODES = {
    "plain": (["-O1"], [], []),
    "trace": (
        ["-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
        ["-DSIMT_TRACE"], [],
    ),
    "asan": (
        ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        ["-DSIMT_ASAN"], ["-fsanitize=address,undefined"],
    ),
    "tsan": (["-O1", "-fsanitize=thread", "-Wno-tsan"], ["-DSIMT_TSAN"], ["-fsanitize=thread"]),
}  # fmt: skip
# A Python that loads a sanitized library must have begun with the sanitizer's own.
PRELOAD = {"asan": ["libasan.so", "libubsan.so"], "tsan": ["libtsan.so"]}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=66",
}


@functools.cache
def compiler_version() -> str:
    """Return the compiler's first line on itself: part of every object's name."""
    done = subprocess.run([*cxx_command(), "--version"], capture_output=True, text=True, check=True)
    return " ".join([done.stdout.splitlines()[0], *cxx_flags()])


@functools.cache
def library(sources: tuple[Path, ...], mode: str, ahead: Path | None = None) -> Path:
    """Return the shared library of these sources and the emulator, built if it is not there.

    ``ahead``: a folder whose headers stand in for those of csrc.
    """
    of_kernels, of_both, of_linker = MODES[mode]
    # The runtime stands first: of inline functions that both define, the linker keeps the first,
    # which is not instrumented.
    jobs = runtime_jobs(mode)
    flags = [*BASE, *of_kernels, *of_both]
    jobs += [(source, [*looking_ahead(source, ahead), *flags]) for source in sources]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(lambda job: compile_object(*job), jobs))
    return link(objects, of_linker)


def looking_ahead(source: Path, ahead: Path | None) -> list[str]:
    """Return the flag that puts ``ahead`` first, for a source that finds a header of its there."""
    if ahead is None:
        return []
    files = included_files(source, [ahead, *FOLDERS])
    return [f"-I{ahead}"] if any(path.is_relative_to(ahead) for path in files) else []


def runtime_jobs(mode: str) -> list[Job]:
    """Return the sources of the emulator's runtime in this mode, with their flags."""
    used = [source for source in RUNTIME if source.name != "trace.cpp" or mode == "trace"]
    return [(source, [*BASE, "-O2", *MODES[mode][1]]) for source in used]


def compile_object(source: Path, flags: Sequence[str]) -> Path:
    """Return the object of one source, compiled if it or a header of it has changed."""
    folders = [Path(flag[2:]) for flag in flags if flag.startswith("-I")]
    key = digest_files(included_files(source, folders), None, compiler_version(), *flags)
    target = CACHE / f"{source.stem}-{key}.o"
    if not target.is_file():
        make([*flags, "-x", "c++", "-c", str(source)], target)
    return target


def link(objects: Sequence[Path], flags: Sequence[str]) -> Path:
    """Return the shared library of these objects, linked if it is not there."""
    # Symbolic: a CUDA build of torch in the same process brings the real CUDA runtime, whose
    # functions would else take the place of the emulator's.
    arguments = ["-shared", "-Wl,-Bsymbolic", *map(str, objects), *flags]
    target = CACHE / f"{digest_files([], None, *arguments)}.so"
    if not target.is_file():
        make(arguments, target)
    return target


def make(arguments: Sequence[str], target: Path) -> None:
    """Run the compiler and put its output in place at once, whoever else may be doing the same."""
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}{target.suffix}")
    done = subprocess.run(
        [*cxx_command(), *arguments, "-o", str(partial)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    os.replace(partial, target)


def environment(mode: str) -> dict[str, str]:
    """Return the variables under which a Python process can load a library of this mode."""
    found = [
        subprocess.run(
            [*cxx_command(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in PRELOAD.get(mode, [])
    ]
    here = {"PYTHONPATH": str(ROOT), "LD_PRELOAD": " ".join(found)}
    return {**os.environ, **ENVIRONMENT, **here}
