"""Measures what a second thread is worth to the router, to softmax and to the machine itself.

    python scripts/thread_scaling.py [--rounds 40]

Forward + backward, N=64, k=2, h=3, float32. OpenMP's threads sleep between two loops
(OMP_WAIT_POLICY=passive), spin (active), or do what libgomp does by itself: spin for some
milliseconds, then sleep. What spinning gains over sleeping is what waking costs. `two processes`:
of one thread each, both at work, beside one of them: what the machine's second core adds at all.
Each round times every case once, in turns, in processes that are stopped while others are timed;
medians of the ratios of a round. It prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from moge_bench import route

TOKENS = (2048, 8192, 65536)
POLICIES = {
    "sleeping": {"OMP_WAIT_POLICY": "passive"}, "spinning": {"OMP_WAIT_POLICY": "active"},
    "libgomp's own": {},
}  # fmt: skip
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

        repeats = max(4, 16384 // num_tokens)
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


def _ask(processes: Sequence[subprocess.Popen[str]], what: str) -> list[Any]:
    """Wake the processes, ask all of them at once, and stop them when all have answered."""
    for process in processes:
        process.send_signal(signal.SIGCONT)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(what + "\n")
        process.stdin.flush()
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    return answers


def _gains(
    workers: Mapping[str, subprocess.Popen[str]], pair: Sequence[subprocess.Popen[str]], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Return the ratios of every round by case and threads."""
    gains: dict[tuple[str, str], list[float]] = {}
    alone = f"route T={TOKENS[-1]}"
    for _ in range(rounds):
        times = {policy: _ask([process], ALL)[0] for policy, process in workers.items()}
        for policy, found in times.items():
            for name, (_, two) in found.items():
                # one thread of "sleeping": in the others the second one may spin beside it
                gains.setdefault((name, policy), []).append(times["sleeping"][name][0] / two)
        (one,) = _ask(pair[:1], alone)
        both = statistics.mean(_ask(pair, alone))
        gains.setdefault((alone, "two processes"), []).append(2 * one / both)
    return gains


def main(rounds: int) -> None:
    """Measure and print the table."""
    workers = {policy: _start(environment) for policy, environment in POLICIES.items()}
    pair = [_start(POLICIES["sleeping"]) for _ in range(2)]
    try:
        gains = _gains(workers, pair, rounds)
    finally:  # they may be stopped, and would never end by themselves
        for process in [*workers.values(), *pair]:
            process.kill()
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
        parser.add_argument("--rounds", type=int, default=40, help="2 or more")
        main(parser.parse_args().rounds)
