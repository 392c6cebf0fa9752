"""Counts the instructions of the routing kernels, exactly, under valgrind's callgrind.

The driver (csrc/bench/kernel_driver.cpp) is linked against the objects that the extension itself
was built from. valgrind 3.19 cannot execute AVX-512, so baseline and AVX2 are counted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from moge_bench.perf.revisions import Revision
from moge_bench.system import cxx_command, cxx_program

DRIVER = Path("csrc/bench/kernel_driver.cpp")
REGION = "moge_measured"
Counts = dict[str, int]


def require_tools() -> None:
    """Raise RuntimeError that names what to install, unless valgrind and a compiler are there."""
    for tool in ("valgrind", cxx_command()[0], cxx_program()):
        if shutil.which(tool) is None:
            raise RuntimeError(
                f"{tool} was not found: the gate counts instructions with it; install it, or pass "
                "--no-instructions to gate on time alone"
            )


def _compile(driver: Path, revision: Revision, binary: Path) -> str:
    """Compile ``driver`` against the revision's kernels; return the compiler's complaint or ""."""
    objects = sorted(revision.tree.glob("build/temp*/csrc/**/*.o"))
    if not objects:
        return f"{revision.name} has no objects of csrc under build/temp*"
    # From an archive the linker takes only what the driver needs: the kernels, not the bindings.
    archive = binary.with_suffix(".a")
    archive.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", str(archive), *map(str, objects)], check=True)
    command = [
        *cxx_command(), "-std=c++17", "-O2", "-I", str(revision.tree / "csrc"),
        str(driver), str(archive), "-o", str(binary),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\n".join(result.stderr.splitlines()[-8:]) if result.returncode else ""


def _run(binary: Path, folder: Path) -> Counts:
    """Run ``binary`` under callgrind and return instructions of every region it prints."""
    command = [
        "valgrind", "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={REGION}",
        f"--dump-after={REGION}", f"--callgrind-out-file={folder}/out", str(binary),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"valgrind failed:\n{result.stderr[-2000:]}")
    labels = _labels(result.stdout)
    dumps = sorted(folder.glob("out.*"), key=lambda path: int(path.suffix[1:]))
    totals = [_total(path) for path in dumps]
    if len(totals) < len(labels) or not all(totals[: len(labels)]):
        raise RuntimeError(f"callgrind counted {totals} for the regions {labels}")
    return dict(zip(labels, totals[: len(labels)], strict=True))


def _labels(printed: str) -> list[str]:
    return [line.strip() for line in printed.splitlines() if line.strip()]


def _total(dump: Path) -> int:
    match = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{dump.name} holds no total")
    return int(match.group(1))


def regions(revision: Revision) -> list[str]:
    """Return the labels of the regions that the revision's own driver runs; none without one."""
    with tempfile.TemporaryDirectory() as temporary:
        binary = Path(temporary) / "driver"
        driver = revision.tree / DRIVER
        if not driver.exists() or _compile(driver, revision, binary):
            return []
        result = subprocess.run([str(binary)], capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"the kernel driver of {revision.name} failed: {result.stderr}")
        return _labels(result.stdout)


def count(revision: Revision, driver_of: Revision | None = None) -> Counts:
    """Return instructions per region of ``revision``: {"avx2 forward 64 2 3 512": n, ...}.

    The driver is that of ``driver_of``, so that both sides of a comparison do the same; where it
    does not compile against this revision's kernels.h, the revision's own is taken. Raises
    RuntimeError where neither does.
    """
    sources = [(driver_of or revision).tree / DRIVER, revision.tree / DRIVER]
    complaints = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for driver in dict.fromkeys(sources):
            if not driver.exists():
                complaints.append(f"{revision.name} has no {DRIVER}")
                continue
            complaint = _compile(driver, revision, folder / "driver")
            if not complaint:
                return _run(folder / "driver", folder)
            complaints.append(complaint)
    raise RuntimeError(f"the kernel driver cannot be built for {revision.name}: {complaints}")


def per_token(counts: Counts) -> dict[str, float]:
    """Return instructions per token of each region; its last word is the number of tokens."""
    return {label: value / int(label.rsplit(" ", 1)[1]) for label, value in counts.items()}
