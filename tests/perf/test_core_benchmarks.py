"""The core cases under pytest-benchmark: ``make bench`` times them, ``make test`` runs each once.

A step is timed only after the verdict on what it computes, as in ``moge-bench perf run``, whose
ratios are interleaved and therefore the ones to quote; this is the quick look while working. Where
nothing is timed a case has at most 2,048 tokens: the verdict takes most of its time.
"""

from dataclasses import replace

import pytest

from moge_bench.perf import bench, layers
from moge_bench.perf.candidates import ROUTERS, Options
from moge_bench.perf.registry import CORE

pytestmark = pytest.mark.slow
PAIRS = [
    (case, candidate)
    for case in CORE
    for candidate in (ROUTERS if case.op == "router" else layers.LAYERS)
    if not candidate.compiled and not candidate.peer
]


@pytest.fixture(scope="module")
def task():
    """The task of the case asked for last: inputs and oracles are shared by its candidates."""
    kept = {}

    def get(case):
        if case not in kept:
            kept.clear()
            make = bench.RouterTask if case.op == "router" else layers.LayerTask
            kept[case] = make(case, Options())
        return kept[case]

    return get


@pytest.mark.parametrize(
    ("case", "candidate"), PAIRS, ids=[f"{case.name}-{c.name}" for case, c in PAIRS]
)
def test_core(benchmark, task, case, candidate):
    if benchmark.disabled:
        case = replace(case, num_tokens=min(case.num_tokens, 2048))
    with bench.num_threads(case.threads):
        step, verdict = task(case).prepare(candidate)
        assert verdict.ok, verdict.detail
        benchmark.group = case.name
        benchmark.extra_info["kernel"] = bench.what_ran(
            candidate.name, candidate.compiled, Options(), step
        )
        benchmark(step)
