"""Measures how small a slowdown the gate sees by time: the share of its runs that catch 1 to 10 %.

    python scripts/power_curve.py [--generations 48] [--runs 300] [--percents 1 2 3 5 10]

It builds the working tree and times it against itself, as the gate does, generation by generation
of fresh worker processes: all cases of the router in one thread. That is this machine's noise. The
curve is the gate's own decisions on it: each run takes the measured generations in an order of its
own, as many as the gate asks for, with the slowdown added to every block of head. At 0 % nothing is
added, and what is caught is a false alarm. So one set of timings serves every percentage, and a
share is of many runs; but they share their generations, and their order, as if the machine did not
drift from one generation to the next: the correlation of neighbours stands beside the curve.

It writes gate_power.json and gate_power.md, and goes on where it stopped if the tree and the
machine are the same. A generation takes about ten seconds on a quiet machine of 2 cores, all of it
ten minutes. That the gate catches a real 5 % in the kernels: scripts/prove_gate.py.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moge_bench.perf import gate, measure, names, registry, report, revisions, rows
from moge_bench.perf.policy import Policy
from moge_bench.perf.registry import Case
from moge_bench.perf.statistics import INCONCLUSIVE, REGRESSION, Decision, overall
from moge_bench.system import write_atomically

CASES = "router/*-t1"
ANY = "any of them"  # the verdict of a whole run of the gate

Noise = list[dict[str, dict[str, list[float]]]]  # [generation][case]["twin" | "head"][block]


def one_generation(tree: revisions.Revision, cases: Sequence[Case], policy: Policy) -> Any:
    """Return what one generation of the tree against itself measured, an entry of ``Noise``."""
    samples = measure.new_samples(cases)
    measure.measure_generation(tree, tree, samples, policy.blocks, "extension")
    return {case.name: {"twin": mine.twin[0], "head": mine.head[0]}
            for case, mine in samples.items()}  # fmt: skip


def replay(
    noise: Noise, cases: Sequence[Case], policy: Policy, percent: float, order: np.ndarray
) -> list[Decision]:
    """Return the gate's decisions on the generations in ``order``, head ``percent`` % slower."""
    added = float(np.log1p(percent / 100))
    taken = iter(order)

    def generation(samples: dict[Case, measure.Samples]) -> None:
        drawn = noise[next(taken)]
        for case, mine in samples.items():
            mine.twin.append(drawn[case.name]["twin"])
            mine.head.append([ratio + added for ratio in drawn[case.name]["head"]])

    return gate.compare_times(cases, policy, generation, lambda message: None)[0]


def _order(generations: int, policy: Policy, seed: int) -> np.ndarray:
    """Return the numbers of the measured generations, drawn anew where a run needs more of them."""
    most = policy.max_generations + policy.generations * policy.looks  # each look confirmed
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(generations) for _ in range(-(-most // generations))]
    return np.concatenate(draws)


def curve(
    noise: Noise, cases: Sequence[Case], policy: Policy, percents: Sequence[float], runs: int
) -> list[dict[str, Any]]:
    """Return a row a percentage and case: how many of ``runs`` caught it, how many cannot tell."""
    found, orders = [], [_order(len(noise), policy, index) for index in range(runs)]
    for percent in percents:
        verdicts: dict[str, Counter[str]] = {case.name: Counter() for case in cases}
        verdicts[ANY] = Counter()
        sees: dict[str, list[float]] = {case.name: [] for case in cases}
        for index in range(runs):
            decisions = replay(noise, cases, policy, percent, orders[index])
            verdicts[ANY][overall(decisions)] += 1
            for decision in decisions:
                verdicts[decision.case][decision.verdict] += 1
                sees[decision.case].append(decision.detectable)
        found += [
            {"percent": percent, "case": name, "runs": runs, "caught": counts[REGRESSION],
             "inconclusive": counts[INCONCLUSIVE],
             "sees": float(np.median(sees[name])) if name in sees else None}
            for name, counts in verdicts.items()
        ]  # fmt: skip
    return found


def neighbours(noise: Noise, case: str) -> float:
    """Return the correlation of head's log ratio between one generation and the next."""
    values = np.array([np.mean(generation[case]["head"]) for generation in noise])
    return float(np.corrcoef(values[:-1], values[1:])[0, 1])


def markdown(data: dict[str, Any]) -> str:
    """Return the curve as a page: a line a percentage, a column a case."""
    by_place = {(row["percent"], row["case"]): row for row in data["curve"]}
    percents = sorted({percent for percent, _ in by_place})
    cases = list(dict.fromkeys(name for _, name in by_place))
    lines = ["# What slowdown the gate sees by time", ""]
    lines += [f"- {name}: {value}" for name, value in data["facts"].items()]
    runs, measured = data["curve"][0]["runs"], len(data["noise"])
    lines += [
        "",
        f"Share of {runs} runs of the gate's decisions that caught a slowdown planted in "
        f"{measured} measured generations of equal builds (in brackets: that could not tell). At "
        "0 % a catch is a false alarm. The runs share their generations. *sees*: the smallest "
        "slowdown that a run says it would surely see, the median. *neighbours*: the correlation "
        "of one generation's ratio with the next one's, near 0 where the machine did not drift.",
        "",
        f"| planted | {' | '.join(name if name == ANY else names.title(name) for name in cases)} |",
        f"|---|{'---|' * len(cases)}",
    ]
    for percent in percents:
        cells = []
        for name in cases:
            row = by_place[percent, name]
            unclear = f" ({row['inconclusive'] / row['runs']:.1%})" if row["inconclusive"] else ""
            cells.append(f"{row['caught'] / row['runs']:.1%}{unclear}")
        lines.append(f"| {percent:g} % | {' | '.join(cells)} |")
    sees = [by_place[percents[0], name]["sees"] for name in cases]
    told = [f"{value - 1:.1%}" if value else "" for value in sees]
    lines.append(f"| sees | {' | '.join(told)} |")
    near = [
        f"{data['neighbours'][name]:+.2f}" if name in data["neighbours"] else "" for name in cases
    ]
    lines.append(f"| neighbours | {' | '.join(near)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the generations that are missing, then write the curve."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--generations", type=int, default=48)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--percents", type=float, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--output", type=Path, default=Path("results/perf"))
    parser.add_argument("--cache", type=Path, default=revisions.default_cache())
    arguments = parser.parse_args()
    policy, cases = Policy(), registry.select("gate", CASES)
    if arguments.generations < policy.max_generations:
        parser.error(
            f"--generations must be at least {policy.max_generations}, as many as a run of the "
            f"gate may take before it gives up, got {arguments.generations}"
        )
    repo = revisions.repository_root(Path(__file__).resolve().parent)
    tree = revisions.build(repo, None, arguments.cache, "unchanged")
    facts = rows.environment("cpu") | {"commit": tree.commit}
    path = arguments.output / "gate_power.json"
    data: dict[str, Any] = report.earlier(path, facts=facts, policy=vars(policy)) or {
        "facts": facts, "policy": vars(policy), "noise": [],
    }  # fmt: skip
    while len(data["noise"]) < arguments.generations:
        data["noise"].append(one_generation(tree, cases, policy))
        write_atomically(path, json.dumps(data) + "\n")
        print(f"generation {len(data['noise'])} of {arguments.generations}", flush=True)
    data["neighbours"] = {case.name: neighbours(data["noise"], case.name) for case in cases}
    data["curve"] = curve(data["noise"], cases, policy, [0, *arguments.percents], arguments.runs)
    write_atomically(path, json.dumps(data) + "\n")
    write_atomically(path.with_suffix(".md"), markdown(data))
    print(f"wrote {path} and {path.with_suffix('.md')}")


if __name__ == "__main__":
    main()
