"""Proves the performance gate: a slowdown of 5 % is caught, an unchanged tree passes, every time.

    python scripts/prove_gate.py [--runs 20] [--delay-runs 5] [--output results/perf]

It builds the working tree and two slowed copies of it, made here and never part of the product:

* ``repeat``: every router kernel repeats 5 % of its tokens, forward and backward (the same work
  again, so 5 % more instructions and about 5 % more time);
* ``delay``: every token waits in `pause` instructions, about 15 % of its time for far less than
  2 % of its instructions: only the clock can see it.

Then it runs the whole gate (instructions and time, both measured again in every run) against the
working tree: ``--runs`` times with ``repeat``, as often with the unchanged tree, and
``--delay-runs`` times with ``delay``. It writes gate_proof.json and gate_proof.md, which say for
every run which detector decided and what slowdown the clock could have seen, and exits 1 unless
every ``repeat`` run was a regression and every unchanged run passed. The verdicts on ``delay``
depend on how quiet the machine is, and are reported, not required. A proof that was cut short goes
on where it stopped, if the tree and the machine are the same. How much smaller a slowdown may be:
scripts/power_curve.py.

Needs valgrind, g++ and an x86-64 processor. About half a minute a run on an idle machine of 2
cores: half an hour in all, and several times that where other work disturbs the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moge_bench.perf import gate, registry, report, revisions, rows
from moge_bench.perf.policy import Policy
from moge_bench.perf.statistics import INCONCLUSIVE, PASS, REGRESSION
from moge_bench.system import write_atomically

CASE = "router/N64-*-t1"
ANCHOR = "}  // namespace\n\nextern const KernelSet"
SETS = ("Set::route_forward", "Set::route_backward")

REPEATED = """
struct Slowed {
  static void route_forward(const RouteForward& a, int64_t begin, int64_t end) {
    Set::route_forward(a, begin, end);
    if (begin != 0) return;
    static thread_local double importance[1024];
    static thread_local int64_t load[1024];
    ChunkSums sums{};
    RouteForward again = a;
    again.num_tokens = again.chunk_tokens = a.num_tokens * PERCENT / 100;
    again.sums = &sums;
    again.importance = importance;
    again.load = load;
    Set::route_forward(again, 0, 1);
  }
  static void route_backward(const RouteBackward& a, int64_t begin, int64_t end) {
    Set::route_backward(a, begin, end);
    if (begin != 0) return;
    ChunkSums sums{};
    RouteBackward again = a;
    again.num_tokens = again.chunk_tokens = a.num_tokens * PERCENT / 100;
    again.sums = &sums;
    Set::route_backward(again, 0, 1);
  }
};

"""

DELAY = """
struct Slowed {
  template <class Arguments>
  static void wait(const Arguments& a, int64_t begin) {
    if (begin != 0) return;
    for (int64_t t = 0; t < a.num_tokens; t += 4) {
      _mm_pause(); _mm_pause(); _mm_pause(); _mm_pause(); _mm_pause(); _mm_pause();
    }
  }
  static void route_forward(const RouteForward& a, int64_t begin, int64_t end) {
    Set::route_forward(a, begin, end);
    wait(a, begin);
  }
  static void route_backward(const RouteBackward& a, int64_t begin, int64_t end) {
    Set::route_backward(a, begin, end);
    wait(a, begin);
  }
};

"""


def repeat(percent: int) -> str:
    """Return the code by which every router kernel repeats ``percent`` % of its tokens."""
    return REPEATED.replace("PERCENT", str(percent))


def slow_down(tree: Path, code: str, sources: list[Path] | None = None) -> None:
    """Put ``code`` into every instruction set of the kernels in ``tree``, or into ``sources``."""
    sources = sources or sorted((tree / "csrc/cpu").glob("kernels_*.cpp"))
    if not sources:
        raise SystemExit("prove_gate: no csrc/cpu/kernels_*.cpp to slow down")
    for source in sources:
        text = source.read_text()
        if ANCHOR not in text or any(name not in text.split(ANCHOR)[1] for name in SETS):
            raise SystemExit(f"prove_gate: {source.name} has changed; adapt ANCHOR to it")
        if code is DELAY:
            text = text.replace(
                '#include "kernels.h"', '#include <immintrin.h>\n#include "kernels.h"'
            )
        before, after = text.split(ANCHOR)
        for name in SETS:
            after = after.replace(name, name.replace("Set", "Slowed"))
        source.write_text(before + code + ANCHOR + after)


def build_all(repo: Path, cache: Path, slowed: dict[str, str]) -> dict[str, revisions.Revision]:
    """Return the working tree and its copies slowed by name -> code, built."""
    built = {"unchanged": revisions.build(repo, None, cache, "unchanged")}
    for name, code in slowed.items():
        with TemporaryDirectory(dir=cache) as folder:
            tree = Path(folder) / "tree"
            commit = revisions.snapshot(repo, None, tree)
            slow_down(tree, code)
            built[name] = revisions.build_tree(tree, f"{commit}+{name}", cache, name)
    return built


def one_run(base: revisions.Revision, head: revisions.Revision, policy: Policy) -> dict[str, Any]:
    """Run the gate once; return its verdict and what each detector said."""
    begin = time.perf_counter()
    cases = registry.select("gate", CASE)
    outcome = gate.run(base, head, cases, policy, progress=lambda message: None)
    exact = [d for d in outcome.decisions if d.detector == "instructions"]
    timed = [d for d in outcome.decisions if d.detector != "instructions"]
    return {
        "verdict": outcome.verdict,
        "instructions": gate.overall(exact),
        "instruction_ratios": [min(d.ratio for d in exact), max(d.ratio for d in exact)],
        "regions": len(exact),
        "regions_flagged": sum(d.verdict == REGRESSION for d in exact),
        "time": gate.overall(timed),
        "time_ratio": timed[0].ratio, "time_low": timed[0].low, "time_high": timed[0].high,
        "time_threshold": timed[0].threshold, "time_detectable": timed[0].detectable,
        "pairs": timed[0].pairs, "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def markdown(data: dict[str, Any]) -> str:
    """Return the proof as a page: what was expected, what was seen, every run."""
    lines = ["# Proof of the performance gate", ""]
    lines += [f"- {name}: {value}" for name, value in data["facts"].items()]
    lines += ["", "| arm | runs | verdict of the gate | by instructions | by time |",
              "|---|---|---|---|---|"]  # fmt: skip
    for arm, runs in data["runs"].items():
        counts = [
            ", ".join(f"{n} {v}" for v, n in Counter(run[key] for run in runs).items())
            for key in ("verdict", "instructions", "time")
        ]
        lines.append(f"| {arm} | {len(runs)} | " + " | ".join(counts) + " |")
    lines += ["", f"required: `repeat` {REGRESSION}, `unchanged` {PASS}, in every run; "
              f"`delay` is reported only. Held: **{data['held']}**.", "",
              "| arm | run | gate | instructions head/base | regions flagged | time | head/base "
              "| interval | threshold | smallest slowdown surely seen | pairs | s |",
              "|---" * 12 + "|"]  # fmt: skip
    for arm, runs in data["runs"].items():
        for index, r in enumerate(runs, 1):
            low, high = r["instruction_ratios"]
            lines.append(
                f"| {arm} | {index} | {r['verdict']} | {low:.4f} - {high:.4f} "
                f"| {r['regions_flagged']}/{r['regions']} | {r['time']} | {r['time_ratio']:.4f} "
                f"| [{r['time_low']:.4f}, {r['time_high']:.4f}] | {r['time_threshold']:.4f} "
                f"| {r['time_detectable']:.4f} | {r['pairs']} | {r['seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every arm, in turns, and write the proof after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--delay-runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("results/perf"))
    parser.add_argument("--cache", type=Path, default=revisions.default_cache())
    arguments = parser.parse_args()
    repo = revisions.repository_root(Path(__file__).resolve().parent)
    built = build_all(repo, arguments.cache, {"repeat": repeat(5), "delay": DELAY})
    # One case has a fifth of the A/A generations of the gate's five: twice as many a look.
    policy = Policy(generations=2 * Policy.generations)
    facts = rows.environment("cpu") | {"commit": built["unchanged"].commit, "case": CASE}
    data: dict[str, Any] = {"facts": facts, "policy": vars(policy), "held": False}
    earlier = report.earlier(
        arguments.output / "gate_proof.json", facts=facts, policy=data["policy"]
    )
    empty: dict[str, list[dict[str, Any]]] = {"repeat": [], "unchanged": [], "delay": []}
    runs = data["runs"] = earlier["runs"] if earlier else empty
    wanted = {"repeat": arguments.runs, "unchanged": arguments.runs, "delay": arguments.delay_runs}
    required = {"repeat": REGRESSION, "unchanged": PASS}
    for index in range(max(wanted.values())):
        for arm in runs:
            if not len(runs[arm]) <= index < wanted[arm]:
                continue
            run = one_run(built["unchanged"], built[arm], policy)
            runs[arm].append(run)
            print(f"{arm} {index + 1}/{wanted[arm]}: {run['verdict']} (instructions "
                  f"{run['instructions']}, time {run['time']} {run['time_ratio']:.3f}, "
                  f"{run['seconds']:.0f} s)", flush=True)  # fmt: skip
            data["held"] = all(
                len(runs[a]) == wanted[a] and all(r["verdict"] == verdict for r in runs[a])
                for a, verdict in required.items()
            )
            text = json.dumps(data, indent=1) + "\n"
            write_atomically(arguments.output / "gate_proof.json", text)
            write_atomically(arguments.output / "gate_proof.md", markdown(data))
    if not data["held"]:
        undecided = sum(r["verdict"] == INCONCLUSIVE for arm in required for r in runs[arm])
        sys.exit(f"prove_gate: the claim does not hold here ({undecided} runs inconclusive)")


if __name__ == "__main__":
    main()
