"""``moge-bench perf run`` and ``count``: time the benchmark, count instructions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from moge_bench.cli.common import err
from moge_bench.cli.interrupted import Commands

app = typer.Typer(
    cls=Commands, help="Benchmarks of router and layer, and the gate that guards them."
)

Output = Annotated[Path, typer.Option(help="Folder of the report.")]
OUTPUT = Path("results/perf")
Cache = Annotated[Path | None, typer.Option(help="Folder of built revisions.")]


NOT_RECORDED = "the working tree has uncommitted changes: not recorded in the history"
CASE = "Only cases with this in their name, or that match it as a glob (with * or ?)."


@contextmanager
def errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of these kinds into one sentence and exit code 2: 1 is a verdict's."""
    try:
        yield
    except kinds as error:
        err.print(f"moge-bench perf: {error}", style="red", markup=False)
        raise typer.Exit(2) from None


@app.command()
def run(
    set_name: Annotated[str, typer.Option("--set", help="core | grid | gate | all")] = "core",
    case: Annotated[str | None, typer.Option(help=CASE)] = None,
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
    """Verify and time every candidate on the declared cases; write JSON, CSV and Markdown.

    Exit 1 if one of ours is wrong, or a candidate breaks; another's candidate that misses the
    bound of its result is named and gets no speed.
    """
    from rich.progress import Progress

    from moge_bench.perf import bench, registry, report, rows
    from moge_bench.perf.candidates import Options
    from moge_bench.training.device import check_device

    with errors(ValueError):
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
    ours = [row for row in failed if not report.is_others(row)]
    for row in failed:
        line = f"{row.case} {row.candidate}: {row.status}: {row.detail}"
        err.print(line, style="red" if row in ours else "yellow", markup=False)
    if len(ours) < len(failed):
        err.print(
            f"{len(failed) - len(ours)} of other people's candidates miss their bound and have no "
            "speed; ours are not concerned"
        )
    err.print(f"wrote {', '.join(map(str, paths))}", markup=False)
    if ours:
        raise typer.Exit(1)


@app.command()
def count(
    output: Output = OUTPUT,
    cache: Cache = None,
) -> None:
    """Count instructions per token of the working tree's kernels under callgrind, for every N.

    And, by disassembly, those in the loops of the AVX-512 kernels, which valgrind cannot run.
    """
    from moge_bench.perf import callgrind, report, revisions, static_count
    from moge_bench.system import write_atomically

    with errors(OSError, ValueError, RuntimeError):
        callgrind.require_tools()
        repo = revisions.repository_root(Path.cwd())
        head = revisions.build(repo, None, cache or revisions.default_cache(), "head")
        counts = callgrind.count(head)
        text = report.instruction_table(callgrind.per_token(counts), head.commit)
        text += static_count.table(static_count.count_loops(head))
        write_atomically(output / "instructions.md", text)
        data = {"commit": head.commit, "build": head.key, "instructions": counts}
        write_atomically(output / "instructions.json", json.dumps(data, indent=1) + "\n")
    print(text)


@app.command()
def series(
    output: Output = OUTPUT,
    wheel: Annotated[
        bool, typer.Option("--wheel", help="Make a wheel too: minutes of compiling.")
    ] = False,
) -> None:
    """Add to history.jsonl what the gate does not judge: memory, import, sizes, tiny presets.

    They are drawn by perf history. Figures of a tree with uncommitted changes are printed only.
    """
    from tabulate import tabulate

    from moge_bench.perf import history, revisions, rows
    from moge_bench.perf import series as measured

    with errors(OSError, ValueError, RuntimeError):
        repo = revisions.repository_root(Path.cwd())
        figures = list(measured.measure_all(repo, with_wheel=wheel))
        print(
            tabulate([(f.case, f"{f.value:.4g}", f.unit) for f in figures], disable_numparse=True)
        )
        commit = revisions.working_commit(repo)
        if not revisions.is_recordable(commit):
            err.print(NOT_RECORDED)
            return
        entries = measured.entries(figures, commit, rows.environment("cpu"))
        history.append(output / "history.jsonl", entries)
    err.print(f"added {len(figures)} figures to {output / 'history.jsonl'}", markup=False)
