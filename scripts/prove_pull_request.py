"""Proves what a maintainer sees of 5 % more work in one real kernel: the summary, and the commit.

    python scripts/prove_pull_request.py [--output results/perf]

In a clone of HEAD, of eight commits that each touch the kernels' sources the fifth repeats 5 % of
the tokens in the AVX2 kernels (the code of scripts/prove_gate.py). Then it runs what CI runs,
scripts/gate_pull_request.sh on the eight as one pull request, and ``moge-bench perf bisect`` over
them, and writes pull_request_proof.md: the summary of the job, and what bisect printed. By
instructions alone, which are exact whatever else runs. Exits 1 unless the gate failed and bisect
named the fifth.

Needs valgrind and g++; six builds, some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import prove_gate

from moge_bench.perf import revisions
from moge_bench.system import write_atomically

COMMITS, SLOW = 8, 5
KERNEL = "csrc/cpu/kernels_avx2.cpp"
BENCH = """#!{python}
import sys
from moge_bench.cli import main
sys.argv += ["--no-time"] * (sys.argv[2] == "gate")
main()
"""


def git(tree: Path, *arguments: str) -> str:
    """Run git in ``tree`` and return what it prints."""
    identity = ["-c", "user.name=proof", "-c", "user.email=proof@example.com"]
    return revisions.run_git(tree, *identity, *arguments).decode().strip()


def plant(tree: Path) -> list[str]:
    """Make the eight commits in the clone at ``tree``; return them, oldest first."""
    made = []
    for number in range(1, COMMITS + 1):
        if number == SLOW:
            prove_gate.slow_down(tree, prove_gate.repeat(5), [tree / KERNEL])
        else:
            source = tree / KERNEL
            source.write_text(f"{source.read_text()}// change {number}\n")
        git(tree, "commit", "-qam", f"Change {number} of {COMMITS} to the kernels")
        made.append(git(tree, "rev-parse", "HEAD"))
    return made


def main() -> None:
    """Plant, judge as a pull request, bisect, and write what was said."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/perf"))
    output = parser.parse_args().output.resolve()
    repo = revisions.repository_root(Path(__file__).resolve().parent)
    with TemporaryDirectory() as temporary:
        tree, bench = Path(temporary) / "clone", Path(temporary) / "bench"
        bench.write_text(BENCH.format(python=sys.executable))
        bench.chmod(0o755)
        subprocess.run(["git", "clone", "-q", str(repo), str(tree)], check=True)
        commits = plant(tree)
        environment = os.environ | {"MOGE_BENCH": str(bench), "PYTHONPATH": str(repo)}
        judged = subprocess.run(
            ["sh", "scripts/gate_pull_request.sh", f"HEAD~{COMMITS}", "gate"],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        summary = (tree / "gate/summary.md").read_text()
        found = subprocess.run(
            [str(bench), "perf", "bisect", "--good", f"HEAD~{COMMITS}"],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        head = git(repo, "rev-parse", "--short=10", "HEAD")
    named = commits[SLOW - 1][:10] in found.stdout
    page = [
        "# What a planted 5 % looks like in a pull request", "",
        f"{COMMITS} commits on {head}; the {SLOW}th, {commits[SLOW - 1][:10]}, repeats 5 % of the "
        f"tokens in {KERNEL}. By instructions alone. Made by: python scripts/prove_pull_request.py",
        "", f"The job's summary (exit {judged.returncode}):", "",
        *(f"> {line}".rstrip() for line in summary.splitlines()), "",
        f"`moge-bench perf bisect --good HEAD~{COMMITS}`:", "", "```",
        found.stdout.strip() or found.stderr.strip(), "```",
    ]  # fmt: skip
    write_atomically(output / "pull_request_proof.md", "\n".join(page) + "\n")
    print("\n".join(page))
    if judged.returncode != 1 or not named:
        sys.exit(f"prove_pull_request: exit {judged.returncode}, the slow commit named: {named}")


if __name__ == "__main__":
    main()
