"""Measures how small a slowdown the gate sees by time: the share of runs that catch 1 to 10 %.

    python scripts/power_curve.py [--runs 20] [--percents 1 2 3 5 10] [--output results/perf]

It builds the working tree and, for every percentage, a copy whose router kernels repeat that share
of their tokens (as scripts/prove_gate.py does for 5 %), and runs the gate's timing of all its cases
of the router in one thread on each, ``--runs`` times, in turns. The unchanged tree is one of them,
at 0 %: what it fails are false alarms. Instructions need no curve: they are counted once a copy and
stand beside it, since a few repeated tokens cost their set-up too. It writes gate_power.json and
gate_power.md, and goes on where it stopped if the tree and the machine are the same.

For a quiet machine of its own: what other work does to the clock would be measured instead. About
half a minute a run there, an hour in all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import prove_gate
from scipy import stats

from moge_bench.perf import gate, registry, report, revisions, rows
from moge_bench.perf.policy import Policy
from moge_bench.perf.statistics import INCONCLUSIVE, REGRESSION
from moge_bench.system import write_atomically

CASES = "router/*-t1"


def arm(percent: int) -> str:
    """Return the name of the copy that repeats ``percent`` % of its tokens; 0: the tree itself."""
    return f"repeat-{percent}" if percent else "unchanged"


def one_run(base: revisions.Revision, head: revisions.Revision) -> list[dict[str, Any]]:
    """Return a decision a case of one run of the gate by time alone."""
    outcome = gate.run(
        base, head, registry.select("gate", CASES), Policy(), instructions=False,
        progress=lambda message: None,
    )  # fmt: skip
    return [decision.fields() for decision in outcome.decisions]


def share(caught: int, runs: int) -> str:
    """Return "19 of 20 (95 %: 75 to 100)": the share and its interval, of Clopper and Pearson."""
    interval = stats.binomtest(caught, runs).proportion_ci()
    low, high = 100 * interval.low, 100 * interval.high
    return f"{caught} of {runs} (95 %: {low:.0f} to {high:.0f})"


def markdown(data: dict[str, Any]) -> str:
    """Return the curve as a page: a line a percentage and case."""
    lines = ["# What slowdown the gate sees by time", ""]
    lines += [f"- {name}: {value}" for name, value in data["facts"].items()]
    lines += ["", "At 0 % what is caught is a false alarm. `sees`: the smallest slowdown that a "
              "run says it would surely see, in the middle of its runs. `instructions`: least and "
              "most head/base of all kernel regions, counted over 320 tokens.", "",
              "| planted | instructions | case | caught by time | inconclusive | sees |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for percent, runs in data["runs"].items():
        least, most = data["instructions"].get(percent, (1.0, 1.0))
        for case in dict.fromkeys(d["case"] for run in runs for d in run):
            mine = [d for run in runs for d in run if d["case"] == case]
            caught = sum(d["verdict"] == REGRESSION for d in mine)
            unclear = sum(d["verdict"] == INCONCLUSIVE for d in mine)
            sees = sorted(d["detectable"] for d in mine)[len(mine) // 2]
            lines.append(
                f"| {percent} % | {least:.3f} to {most:.3f} | {case} | {share(caught, len(mine))} "
                f"| {unclear} | {sees - 1:.1%} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every percentage in turns, and write the curve after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--percents", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--output", type=Path, default=Path("results/perf"))
    parser.add_argument("--cache", type=Path, default=revisions.default_cache())
    arguments = parser.parse_args()
    repo = revisions.repository_root(Path(__file__).resolve().parent)
    percents = [0, *arguments.percents]
    built = prove_gate.build_all(
        repo, arguments.cache, {arm(p): prove_gate.repeat(p) for p in arguments.percents}
    )
    base = built["unchanged"]
    facts = rows.environment("cpu") | {"commit": base.commit}
    path = arguments.output / "gate_power.json"
    data: dict[str, Any] = report.earlier(path, facts=facts, policy=vars(Policy())) or {
        "facts": facts, "policy": vars(Policy()), "instructions": {}, "runs": {},
    }  # fmt: skip
    for percent in arguments.percents:
        if str(percent) not in data["instructions"]:
            decisions, _, _ = gate.compare_instructions(base, built[arm(percent)], 1.0)
            ratios = [decision.ratio for decision in decisions]
            data["instructions"][str(percent)] = [min(ratios), max(ratios)]
    for index in range(arguments.runs):
        for percent in percents:
            runs = data["runs"].setdefault(str(percent), [])
            if len(runs) > index:
                continue
            runs.append(one_run(base, built[arm(percent)]))
            said = ", ".join(f"{d['verdict']} {d['ratio']:.3f}" for d in runs[-1])
            print(f"{percent} % {index + 1}/{arguments.runs}: {said}", flush=True)
            write_atomically(path, json.dumps(data, indent=1) + "\n")
            write_atomically(path.with_suffix(".md"), markdown(data))


if __name__ == "__main__":
    main()
