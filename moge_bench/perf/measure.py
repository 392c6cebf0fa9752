"""Times two revisions against each other in fresh worker processes, block by block.

Three workers run in each generation: base, a twin of base (the A/A pair, from which the machine's
noise is known), and head. They are visited in palindromic order, one at a time. A case of one
thread is judged by processor time, which leaves out the time that other processes run; a case of
several by wall time, which alone shows lost parallelism.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moge_bench.perf.registry import Case
from moge_bench.perf.revisions import Revision
from moge_bench.perf.statistics import block_log_ratio, midmean

WORKER = Path(__file__).with_name("worker.py")
ORDERS = tuple(itertools.permutations(("base", "twin", "head")))
VISIT_SECONDS = 0.008  # long beside the 50 us that a request takes, short beside drift


class Worker:
    """One worker process; ``ask`` sends a request and returns its answer, or raises its error."""

    def __init__(self, revision: Revision) -> None:
        self.revision = revision
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(WORKER), str(revision.tree)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # Idle workers must sleep: by default their OpenMP threads spin for milliseconds after
            # a call, on the cores that the next worker is timed on (measured: 2 ms became 28).
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )  # fmt: skip

    def receive(self) -> dict[str, Any]:
        """Wait for one answer; RuntimeError with the worker's own words where it failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            tail = self.process.stderr.read()[-2000:]
            raise RuntimeError(f"the worker of {self.revision.name} died:\n{tail}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"the worker of {self.revision.name} failed:\n{reply['error']}")
        return reply

    def send(self, **request: Any) -> None:
        """Send one request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return its answer."""
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        """End the process and close its pipes."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(base: Revision, head: Revision) -> Iterator[dict[str, Worker]]:
    """Start the three workers of a generation, and end them whatever happens."""
    started = {"base": Worker(base), "twin": Worker(base), "head": Worker(head)}
    try:
        for worker in started.values():
            worker.receive()
        yield started
    finally:
        for worker in started.values():
            worker.close()


@dataclass
class Samples:
    """What was measured of one case: per generation, log ratios of blocks; and head's time.

    ``cleared`` is the largest head/base of an alert that fresh processes took back.
    """

    twin: list[list[float]] = field(default_factory=list)
    head: list[list[float]] = field(default_factory=list)
    head_ms: list[float] = field(default_factory=list)
    cleared: float | None = None

    def noise_generations(self) -> list[float]:
        """Return one A/A log ratio a generation."""
        return [midmean(blocks) for blocks in self.twin]


def clock_of(case: Case) -> str:
    """Return the clock that judges ``case``: "cpu" for one thread, "wall" for several."""
    return "cpu" if case.threads == 1 else "wall"


def measure_case(
    pool: dict[str, Worker], case: Case, blocks: int, backend: str | None
) -> tuple[list[float], list[float], list[float]]:
    """Return the log ratios twin/base and head/base of each block, and head's times in ms."""
    for worker in pool.values():
        worker.send(prepare=case.fields(), threads=case.threads)
    for worker in pool.values():
        ran = worker.receive()["ready"]
        if backend is not None and ran != backend:
            raise RuntimeError(
                f"{worker.revision.name} ran backend {ran!r} on {case.name}, not {backend!r}: "
                "a fallback is not a measurement of the kernel"
            )
    for worker in pool.values():
        worker.ask(calls=3)
    clock = clock_of(case)
    slowest = max(worker.ask(calls=2)["wall"] for worker in pool.values())
    calls = min(20, max(3, round(VISIT_SECONDS / slowest)))
    twin, head, times = [], [], []
    for index in range(blocks):
        order = ORDERS[index % len(ORDERS)]
        seen: dict[str, list[float]] = {name: [] for name in order}
        for name in (*order, *reversed(order)):
            seen[name].append(pool[name].ask(calls=calls)[clock])
        twin.append(block_log_ratio(seen["base"], seen["twin"]))
        # base and twin are the same build: both are the base of the A/B ratio.
        head.append(block_log_ratio(seen["base"] + seen["twin"], seen["head"]))
        times += [1e3 * seconds for seconds in seen["head"]]
    return twin, head, times


def measure_generation(
    base: Revision, head: Revision, samples: dict[Case, Samples], blocks: int, backend: str | None
) -> None:
    """Run one generation of workers over all cases and add what it measured to ``samples``."""
    with workers(base, head) as pool:
        for case, mine in samples.items():
            twin, against, times = measure_case(pool, case, blocks, backend)
            mine.twin.append(twin)
            mine.head.append(against)
            mine.head_ms += times


def new_samples(cases: Sequence[Case]) -> dict[Case, Samples]:
    """Return empty samples for every case."""
    return {case: Samples() for case in cases}
