"""``moge-bench perf``: run the benchmark, or gate a revision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moge_bench.cli.common import err
from moge_bench.perf.policy import Policy

if TYPE_CHECKING:
    from moge_bench.perf.gate import Outcome

app = typer.Typer(help="Benchmarks of router and layer, and the gate that guards them.")

Output = Annotated[Path, typer.Option(help="Folder of the report.")]
OUTPUT = Path("results/perf")
Cache = Annotated[Path | None, typer.Option(help="Folder of built revisions.")]


@contextmanager
def _errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into one sentence and exit code 2: 1 is a verdict's."""
    try:
        yield
    except kinds as error:
        err.print(f"moge-bench perf: {error}", style="red", markup=False)
        raise typer.Exit(2) from None


@app.command()
def run(
    set_name: Annotated[str, typer.Option("--set", help="core | grid | gate | all")] = "core",
    case: Annotated[str | None, typer.Option(help="Only cases whose name matches this.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many cases.")] = None,
    rounds: Annotated[int, typer.Option(min=4, help="Timed rounds per candidate.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Override the declared threads.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or a torch device.")] = "cpu",
    backend: Annotated[str, typer.Option(help="extension | reference")] = "extension",
    compiled: Annotated[bool, typer.Option(help="Time the torch.compile candidates.")] = True,
    peers: Annotated[bool, typer.Option(help="Time other libraries.")] = True,
    instructions: Annotated[bool, typer.Option(help="Count instructions too.")] = False,
    output: Output = OUTPUT,
    resume: Annotated[bool, typer.Option(help="Keep the cases an equal run has measured.")] = False,
    dry_run: Annotated[bool, typer.Option(help="List the cases and stop.")] = False,
) -> None:
    """Verify and time every candidate on the declared cases; write JSON, CSV and Markdown."""
    from rich.progress import Progress

    from moge_bench.perf import bench, registry, report, rows
    from moge_bench.perf.candidates import Options
    from moge_bench.training.device import check_device

    with _errors(ValueError):
        cases = registry.select(set_name, case, limit, threads)
        if not dry_run:
            check_device(device)
    if dry_run:
        for item in cases:
            print(item.name)
        return
    settings = bench.Settings(
        rounds=rounds, compiled=compiled, peers=peers, options=Options(backend, device)
    )
    facts = rows.environment(device) | {"rounds": rounds, "set": set_name, "backend": backend}
    result = report.resume(output, f"bench_{set_name}", facts) if resume else []
    measured = {row.case for row in result}
    cases = [item for item in cases if item.name not in measured]
    with Progress(console=err) as progress:
        task = progress.add_task("cases", total=len(cases))
        for item in cases:
            progress.update(task, description=item.name)
            result += bench.run_case(item, settings)
            # Written after every case: an interrupted run keeps what it has measured.
            report.write(result, facts, output, f"bench_{set_name}")
            progress.advance(task)
    paths = report.write(result, facts, output, f"bench_{set_name}")
    print(paths[2].read_text(encoding="utf-8"))
    if instructions:
        count(output=output)
    failed = report.failures(result)
    for row in failed:
        err.print(
            f"{row.case} {row.candidate}: {row.status}: {row.detail}", style="red", markup=False
        )
    err.print(f"wrote {', '.join(map(str, paths))}", markup=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def count(
    output: Output = OUTPUT,
    cache: Cache = None,
) -> None:
    """Count instructions per token of the working tree's kernels under callgrind, for every N."""
    from moge_bench.perf import callgrind, report, revisions
    from moge_bench.system import write_atomically

    with _errors(OSError, ValueError, RuntimeError):
        callgrind.require_tools()
        repo = revisions.repository_root(Path.cwd())
        head = revisions.build(repo, None, cache or revisions.default_cache(), "head")
        counts = callgrind.count(head)
        text = report.instruction_table(callgrind.per_token(counts), head.commit)
        write_atomically(output / "instructions.md", text)
        data = {"commit": head.commit, "build": head.key, "instructions": counts}
        write_atomically(output / "instructions.json", json.dumps(data, indent=1) + "\n")
    print(text)


def _report_gate(outcome: Outcome, facts: dict[str, Any], output: Path) -> None:
    from moge_bench.perf import report
    from moge_bench.system import write_atomically

    data = {
        "facts": facts, "verdict": outcome.verdict, "notes": outcome.notes,
        "decisions": [decision.fields() for decision in outcome.decisions],
        "head_instructions": outcome.head_instructions,
        "head_ms": {case: asdict(summary) for case, summary in outcome.head_ms.items()},
    }  # fmt: skip
    write_atomically(output / "gate.json", json.dumps(data, indent=1) + "\n")
    text = report.gate_table(outcome.decisions, outcome.notes, outcome.verdict, facts)
    write_atomically(output / "gate.md", text)
    print(text)


@app.command(name="gate")
def gate_command(
    base: Annotated[str, typer.Option(help="Revision to compare with, e.g. origin/main.")],
    head: Annotated[str | None, typer.Option(help="Revision to judge; default: this tree.")] = None,
    case: Annotated[str | None, typer.Option(help="Time only cases that match this.")] = None,
    instructions: Annotated[bool, typer.Option(help="Count instructions.")] = True,
    time: Annotated[bool, typer.Option(help="Time in worker processes.")] = True,
    blocks: Annotated[int, typer.Option(help="Blocks per case and generation.")] = Policy.blocks,
    generations: Annotated[
        int, typer.Option(help="Worker generations per look.")
    ] = Policy.generations,
    max_generations: Annotated[
        int, typer.Option(help="Limit before inconclusive.")
    ] = Policy.max_generations,
    resolution: Annotated[
        float, typer.Option(help="Slowdown time must be able to see.")
    ] = Policy.resolution,
    accept_instructions: Annotated[
        float, typer.Option(help="Ratio of instructions to let pass, where they buy time.")
    ] = Policy.instruction_threshold,
    backend: Annotated[str, typer.Option(help="What must run; 'any' to allow all.")] = "extension",
    cache: Cache = None,
    output: Output = OUTPUT,
    record: Annotated[bool, typer.Option(help="Append to history.jsonl, redraw it.")] = True,
) -> None:
    """Exit 0 if head is not slower than base, 1 if it is or if that cannot be told, 2 on error."""
    from moge_bench.perf import gate, history, registry, revisions, rows
    from moge_bench.perf.statistics import PASS

    with _errors(OSError, ValueError, RuntimeError):
        policy = Policy(
            blocks=blocks, generations=generations, max_generations=max_generations,
            resolution=resolution, instruction_threshold=accept_instructions,
        )  # fmt: skip
        cases = registry.select("gate", case) if time else []
        repo = revisions.repository_root(Path.cwd())
        folder = cache or revisions.default_cache()
        err.print(
            f"building base ({base}) and head ({head or 'working tree'}) in {folder}", markup=False
        )
        base_build = revisions.build(repo, base, folder, "base")
        head_build = revisions.build(repo, head, folder, "head")
        outcome = gate.run(
            base_build, head_build, cases, policy, instructions=instructions, time=time,
            backend=None if backend == "any" else backend, progress=err.print,
        )  # fmt: skip
        facts = rows.environment("cpu") | {"base": base_build.commit, "head": head_build.commit}
        _report_gate(outcome, facts, output)
        if record and head_build.commit.endswith("+dirty"):
            err.print("the working tree has uncommitted changes: not recorded in the history")
        elif record:
            path = output / "history.jsonl"
            history.append(path, history.entries(outcome, base_build, head_build, facts))
            history.figure(history.read(path), output)
    if outcome.verdict != PASS:
        for decision in outcome.decisions:
            if decision.verdict != PASS:
                err.print(str(decision), style="red", markup=False)
        raise typer.Exit(1)
