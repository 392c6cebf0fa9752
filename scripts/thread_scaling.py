"""Measures what a second thread is worth to the router, to softmax and to the machine itself.

    python scripts/thread_scaling.py [--rounds 40]

Forward + backward, N=64, k=2, h=3, float32. `alone`: two processes of one thread each, both at
work, beside one: what the machine's second core adds at all, without any waking or waiting. The
OpenMP runtime lets its threads sleep between two calls, or spin (OMP_WAIT_POLICY=active): the
difference is what waking costs. Each round times every case once, in turns; medians of the ratios
of a round. It prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from moge_bench import route

TOKENS = (2048, 8192, 65536)
POLICIES = {"sleeping": {}, "spinning": {"OMP_WAIT_POLICY": "active"}}
ALL = "all"


def _cases() -> dict[str, tuple[Callable[[], None], int]]:
    """Return the steps to time by name, and how often a step is repeated."""
    cases: dict[str, tuple[Callable[[], None], int]] = {}
    for num_tokens in TOKENS:
        x = torch.randn(num_tokens, 64, requires_grad=True)
        upstream = torch.rand(num_tokens, 64)

        def router(x: torch.Tensor = x) -> None:
            x.grad = None
            route(x, 2, group_size=3).group_loss.backward()

        def softmax(x: torch.Tensor = x, upstream: torch.Tensor = upstream) -> None:
            x.grad = None
            torch.softmax(x, -1).backward(upstream)

        repeats = max(1, 16384 // num_tokens)
        cases[f"route T={num_tokens}"] = (router, repeats)
        cases[f"softmax T={num_tokens}"] = (softmax, repeats)
    return cases


def _seconds(step: Callable[[], None], repeats: int, threads: int) -> float:
    torch.set_num_threads(threads)
    step()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - began) / repeats


def worker() -> None:
    """Serve a line of input: a case, whose seconds with one thread it prints, or ALL."""
    cases = _cases()
    for line in sys.stdin:
        name = line.strip()
        if name == ALL:
            times: Any = {n: [_seconds(*case, threads) for threads in (1, 2)]
                          for n, case in cases.items()}  # fmt: skip
        else:
            times = _seconds(*cases[name], 1)
        print(json.dumps(times), flush=True)


def _start(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--worker"], env={**os.environ, **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _ask(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def main(rounds: int) -> None:
    """Measure and print the table."""
    workers = {policy: _start(environment) for policy, environment in POLICIES.items()}
    pair = [_start({}), _start({})]
    gains: dict[tuple[str, str], list[float]] = {}
    alone = f"route T={TOKENS[-1]}"
    for _ in range(rounds):
        for policy, process in workers.items():
            _ask(process, ALL)
            for name, (one, two) in _answer(process).items():
                gains.setdefault((name, policy), []).append(one / two)
        _ask(pair[0], alone)
        one = _answer(pair[0])
        for process in pair:
            _ask(process, alone)
        both = statistics.mean(_answer(process) for process in pair)
        gains.setdefault((alone, "alone"), []).append(2 * one / both)
    for process in [*workers.values(), *pair]:
        process.terminate()
    print("| case | threads | times as fast with two: median | quartiles |")
    print("|---|---|---|---|")
    for (name, policy), values in sorted(gains.items()):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {policy} | {middle:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker()
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--rounds", type=int, default=40)
        main(parser.parse_args().rounds)
