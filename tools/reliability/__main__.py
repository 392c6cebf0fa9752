"""make reliability: every part that has no figures for this code yet, then the page.

python -m tools.reliability [PART ...] [--again] [--count N] [--only INDEX] [--minutes M] ...
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from moge_bench.system import write_atomically
from tools.reliability import figures, page

PAGE = figures.ROOT / "results/reliability.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for; return 1 where one found something."""
    parser = argparse.ArgumentParser(prog="python -m tools.reliability", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(page.PARTS)}")
    parser.add_argument("--again", action="store_true", help="parts that have their figures too")
    parser.add_argument("--count", type=int, default=100_000, help="cases of ops")
    parser.add_argument(
        "--only", type=int, help="run this case of ops alone and print what it says"
    )
    parser.add_argument("--seed", type=int, default=0, help="of ops and kills")
    parser.add_argument("--minutes", type=float, help="of fuzz (30, shared) and memory (60)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--results", type=Path, default=figures.RESULTS, help="folder of the figures"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(page.PARTS):
        parser.error(f"PART must be of {', '.join(page.PARTS)}, got {', '.join(sorted(unknown))}")
    if given.only is not None:
        return _show(given.seed, given.only)
    found = 0
    for part in given.parts or page.PARTS:
        chosen = _arguments(part, given)
        if figures.is_done(part, chosen, given.results) and not given.again:
            print(f"{part}: has its figures for this code; --again runs it again", flush=True)
            continue
        print(f"{part}: {', '.join(f'{n}={value}' for n, value in chosen.items())}", flush=True)
        on, began, processor = figures.facts(), time.monotonic(), _processor_s()
        values = importlib.import_module(f"tools.reliability.{part}").run(**chosen)
        took = {
            "wall_s": round(time.monotonic() - began, 1),
            "processor_s": round(_processor_s() - processor, 1),
        }
        figures.write(part, chosen, took, values, on, given.results)
        print(f"{part}: {took['wall_s']} s, {num_findings(part, values)} findings", flush=True)
    texts = {part: figures.read(part, given.results) for part in page.PARTS}
    write_atomically(given.page, page.render(texts))
    for part, each in texts.items():
        found += 0 if each is None else num_findings(part, each["found"])
    print(f"{given.page}: {found} findings")
    return 1 if found else 0


def _arguments(part: str, given: argparse.Namespace) -> dict[str, Any]:
    return {
        "ops": {"count": given.count, "seed": given.seed},
        "fuzz": {"minutes": given.minutes or 30},
        "kills": {"kills": given.kills, "seed": given.seed},
        "memory": {"minutes": given.minutes or 60},
    }[part]


def num_findings(part: str, found: dict[str, Any]) -> int:
    """Return how many faults a part found; the slope of memory is for a reader to judge."""
    if part == "ops":
        large = found["large"] or ""
        return len(found["findings"]) + any(word in large for word in ("wrong:", "failed:"))
    if part == "fuzz":
        return sum(len(each["findings"]) for each in found["targets"].values())
    return len(found["differing"]) if part == "kills" else 0


def _processor_s() -> float:
    """Return the processor time of this process and of its children that have ended, s."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _show(seed: int, index: int) -> int:
    from tools.reliability.cases import draw
    from tools.reliability.ops import run

    print(draw(seed, index))
    found = run(index + 1, seed, only=index)
    for each in found["findings"]:
        print(f"{each['instruction_set']}: {each['what']}")
    print("differs" if found["findings"] else "agrees with the reference, nothing reported")
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
