"""What the gate does not judge and a maintainer wants to see: figures of a commit for the history.

Memory and speed of a training step, the cost of a call and of the import, the size of what is
installed, on request the wheel and what it takes to compile, and what the committed cost report
says of the GPU's kernels. Lower is better in all of them.
"""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moge_bench.perf import machines
from moge_bench.perf.timing import interleave, summarize

PRESETS = ("tiny-vit", "tiny-lm")
DETECTOR = "series"  # in the place of the gate's detector: nothing judges these
ROUNDS, CALLS = 50, 20  # of a single call's time
IMPORTS = 7
KIB, MIB = 2**10, 2**20
_COST = Path("results/perf/gpu_cost.csv")
_COST_OF = ("sm_90", "T=65536 N=64 k=2 h=3 ", "route_")


@dataclass(frozen=True)
class Figure:
    """One figure, with its quartiles if it is a time of several samples."""

    case: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None
    exact: bool = False  # a count: any change is one
    machine: str | None = None  # None: that of the times


def _timed(case: str, unit: str, samples: list[float]) -> Figure:
    found = summarize(samples)
    return Figure(case, unit, found.median, found.lower_quartile, found.upper_quartile)


def training_steps() -> Iterator[Figure]:
    """Yield microseconds a token and peak MiB of a training step of each tiny preset, as MoGE."""
    from moge_bench.perf.cells import measure
    from moge_bench.presets import resolve

    for preset in PRESETS:
        [found] = measure([resolve(preset, "moge")]).values()
        speed = found["tokens_per_second"]
        per_token = [1e6 / speed[name] for name in ("median", "upper", "lower")]
        yield Figure(f"training step of {preset}", "µs per token", *per_token)
        memory = f"peak memory of a training step of {preset}"
        yield Figure(memory, "MiB of tensors", found["peak_memory_mib"], exact=True)


def call_overhead() -> Iterator[Figure]:
    """Yield microseconds a call of ``route`` and ``group_norm`` on one token: mere calling."""
    import torch

    # Not of moge_bench itself, whose command does without these names.
    from moge_bench.ops.group_norm import group_norm
    from moge_bench.ops.route import route

    logits = torch.zeros(1, 64)
    ops: dict[str, Callable[[], object]] = {
        "route": lambda: route(logits, 2, group_size=3),
        "group_norm": lambda: group_norm(logits, group_size=3),
    }

    def repeated(op: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(CALLS):
                op()

        return run

    with torch.inference_mode():
        samples = interleave({name: repeated(op) for name, op in ops.items()}, rounds=ROUNDS)
    for name, seconds in samples.items():
        yield _timed(f"call of {name} on one token", "µs", [1e6 * s / CALLS for s in seconds])


def import_cost() -> Iterator[Figure]:
    """Yield what ``import moge_bench`` costs after torch: milliseconds, and modules (exact)."""
    code = (
        "import sys, time, torch; had = set(sys.modules); begin = time.perf_counter(); "
        "import moge_bench; print(time.perf_counter() - begin, len(set(sys.modules) - had))"
    )
    command = [sys.executable, "-c", code]
    seconds, modules = [], 0
    for index in range(IMPORTS + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        if index:  # the first one writes and reads what later ones find in the cache
            seconds.append(float(done.stdout.split()[0]))
        modules = int(done.stdout.split()[1])
    yield _timed("import of moge_bench after torch", "ms", [1e3 * s for s in seconds])
    yield Figure("modules imported by moge_bench after torch", "modules", modules, exact=True)


def installed_size(package: Path) -> Iterator[Figure]:
    """Yield the bytes of the libraries that stand in ``package``, each in MiB."""
    names = {"_C.": "CPU extension", "_cuda.": "CUDA library"}
    for path in sorted(package.glob("*.so")):
        for prefix, words in names.items():
            if path.name.startswith(prefix):
                yield Figure(f"size of the {words}", "MiB", path.stat().st_size / MIB, exact=True)


def wheel(repo: Path) -> Iterator[Figure]:
    """Yield processor seconds and KiB of a wheel with the CPU extension, made from ``repo``'s tree.

    Raises RuntimeError with the end of what pip says where it fails.
    """
    from moge_bench.perf.revisions import snapshot

    with tempfile.TemporaryDirectory(prefix="moge-bench-wheel-") as temporary:
        tree, output = Path(temporary) / "tree", Path(temporary) / "wheel"
        snapshot(repo, None, tree)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
                   "--wheel-dir", str(output), str(tree)]  # fmt: skip
        before = _children_seconds()
        done = subprocess.run(
            command, env={**os.environ, "MOGE_CUDA": "0"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"no wheel can be made here:\n{done.stderr[-2000:]}")
        spent = _children_seconds() - before
        [made] = output.glob("*.whl")
        size = made.stat().st_size / KIB
    yield Figure("compiling the CPU extension", "s of processor time", spent)
    yield Figure("size of the wheel with the CPU extension", "KiB", size, exact=True)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def gpu_cost(table: Path) -> Iterator[Figure]:
    """Yield instructions a token of the router's main kernels, as the committed report has them."""
    architecture, launch, kernel = _COST_OF
    if not table.exists():
        return
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["architecture"] == architecture and row["launch"].startswith(launch)
                    and row["kernel"].startswith(kernel)):  # fmt: skip
                name = row["kernel"].split("<")[0].removesuffix("_kernel")
                words = row["launch"].removeprefix(launch.split()[0]).strip()
                yield Figure(
                    f"{architecture} {name} {words}", "PTX instructions per token",
                    float(row["ptx_instructions_per_token"]), exact=True,
                    machine=f"cost report, nvcc {row['nvcc'].split(',')[0]}",
                )  # fmt: skip


def measure_all(repo: Path, *, with_wheel: bool) -> Iterator[Figure]:
    """Yield every figure of the tree that is imported; ValueError unless it is ``repo``'s."""
    import moge_bench

    package = Path(moge_bench.__file__).resolve().parent
    if package.parent != repo.resolve():
        raise ValueError(f"moge_bench is imported from {package.parent}, not from {repo}")
    yield from call_overhead()
    yield from import_cost()
    yield from training_steps()
    yield from installed_size(package)
    yield from gpu_cost(repo / _COST)
    if with_wheel:
        yield from wheel(repo)


def entries(figures: list[Figure], commit: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one entry of the history per figure, measured under ``facts`` (`rows.environment`)."""
    machine = machines.machine(facts, machines.compiler_version())
    result = []
    for figure in figures:
        entry = {
            "commit": commit, "unix_time": int(time.time()), "case": figure.case,
            "detector": DETECTOR, "machine": figure.machine or machine,
            "value": figure.value, "unit": figure.unit, "exact": figure.exact,
        }  # fmt: skip
        if figure.low is not None:
            entry |= {"lower_quartile": figure.low, "upper_quartile": figure.high}
        result.append(entry)
    return result
