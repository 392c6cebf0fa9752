"""``moge-bench perf gate``, ``history`` and ``bisect``: is it slower, since when, which commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moge_bench.cli.common import err
from moge_bench.cli.perf import CASE, NOT_RECORDED, OUTPUT, Cache, Output, app, errors
from moge_bench.perf.policy import Policy

if TYPE_CHECKING:
    from moge_bench.perf.acceptance import Acceptance
    from moge_bench.perf.gate import Outcome


def _report(
    outcome: Outcome, facts: dict[str, Any], output: Path, summary: Path | None, compared: str
) -> None:
    from moge_bench.perf import verdicts
    from moge_bench.system import write_atomically

    data = {
        "facts": facts, "verdict": outcome.verdict, "notes": outcome.notes,
        "headline": verdicts.headline(outcome.decisions),
        "decisions": [decision.fields() for decision in outcome.decisions],
        "head_instructions": outcome.head_instructions,
        "head_ms": {case: asdict(summary) for case, summary in outcome.head_ms.items()},
        "cleared": outcome.cleared,
    }  # fmt: skip
    write_atomically(output / "gate.json", json.dumps(data, indent=1) + "\n")
    what = (outcome.decisions, outcome.notes, outcome.verdict)
    write_atomically(output / "gate.md", verdicts.report(*what, compared, facts))
    text = verdicts.summary(*what, compared)
    if summary is not None:
        write_atomically(summary, text)
    print(text)


def _accepted(repo: Path, base: str, head: str | None, ratio: float) -> list[Acceptance]:
    """Return what head accepts since base: of its file, of its commits' trailers, and ``ratio``.

    ``ratio`` is that of the command line, for every region.
    """
    from moge_bench.perf import acceptance, names, revisions

    path, every = acceptance.PATH, f"{names.INSTRUCTIONS}*"
    found = acceptance.added(
        revisions.read_at(repo, head, path), revisions.read_at(repo, base, path)
    )
    trailer = revisions.accepted_instructions(repo, base, head or "HEAD")
    if trailer is not None:
        found.append(acceptance.Acceptance(every, trailer, "the trailer of a commit"))
    if ratio != Policy.instruction_threshold:
        found.append(acceptance.Acceptance(every, ratio, "--accept-instructions"))
    return found


@contextmanager
def _told(summary: Path | None) -> Iterator[None]:
    """Write the sentence of an error to ``summary``, whoever is to read it, and go on raising."""
    from moge_bench.system import write_atomically

    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if summary is not None:
            write_atomically(summary, f"## Performance gate: no verdict\n\n{error}\n")
        raise


@app.command(name="gate")
def gate_command(
    base: Annotated[str | None, typer.Option(help="Compare with this, e.g. origin/main.")] = None,
    anchor: Annotated[
        bool, typer.Option("--anchor", help="Compare with the last release, or 30 days ago.")
    ] = False,
    head: Annotated[str | None, typer.Option(help="Revision to judge; default: this tree.")] = None,
    case: Annotated[str | None, typer.Option(help=CASE)] = None,
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
        float, typer.Option(help="Ratio of instructions to let pass in every region, this once.")
    ] = Policy.instruction_threshold,
    backend: Annotated[str, typer.Option(help="What must run; 'any' to allow all.")] = "extension",
    cache: Cache = None,
    output: Output = OUTPUT,
    summary: Annotated[
        Path | None, typer.Option(help="Write the verdict in brief to this file too.")
    ] = None,
    record: Annotated[bool, typer.Option(help="Append to history.jsonl.")] = True,
) -> None:
    """Exit 0 if head is not slower than base, 1 if it is or if that cannot be told, 2 on error.

    With --anchor it sees a drift: many steps that are each too small to fail.
    """
    from moge_bench.perf import gate, history, names, registry, revisions, rows
    from moge_bench.perf.statistics import PASS

    with errors(OSError, ValueError, RuntimeError), _told(summary):
        if (base is None) != anchor:
            raise ValueError("give --base REVISION or --anchor, one of them")
        policy = Policy(
            blocks=blocks, generations=generations, max_generations=max_generations,
            resolution=resolution,
        )  # fmt: skip
        timed = [each.name for each in registry.SETS["gate"]] if time else []
        if instructions and not any(names.matches(name, case) for name in timed):
            cases = []  # the pattern is for kernel regions
        else:
            cases = registry.select("gate", case) if time else []
        repo = revisions.repository_root(Path.cwd())
        base = base or revisions.anchor(repo, head or "HEAD")
        accepted = _accepted(repo, base, head, accept_instructions)
        folder = cache or revisions.default_cache()
        err.print(
            f"building base ({base}) and head ({head or 'working tree'}) in {folder}", markup=False
        )
        base_build = revisions.build(repo, base, folder, "base")
        head_build = revisions.build(repo, head, folder, "head")
        outcome = gate.run(
            base_build, head_build, cases, policy, instructions=instructions, regions=case,
            accepted=accepted, backend=None if backend == "any" else backend, progress=err.print,
        )  # fmt: skip
        if base_build.key == head_build.key:
            outcome.notes.append("base and head are built from the same sources")
        facts = rows.environment("cpu") | {"base": base_build.commit, "head": head_build.commit}
        compared = f"{head_build.commit[:10]} against {base_build.commit[:10]}"
        if base != base_build.commit:
            compared += f" ({base}{', the anchor of drifts' if anchor else ''})"
        _report(outcome, facts, output, summary, compared)
        if record and not revisions.is_recordable(head_build.commit):
            err.print(NOT_RECORDED)
        elif record:
            path = output / "history.jsonl"
            judged = revisions.is_parent(repo, base_build.commit, head_build.commit)
            found = history.entries(outcome, base_build, head_build, facts, judged=judged)
            history.append(path, found)
    if outcome.verdict != PASS:
        raise typer.Exit(1)


@app.command(name="bisect")
def bisect_command(
    good: Annotated[str, typer.Option(help="A revision that is fast.")],
    bad: Annotated[str, typer.Option(help="A later one that is slow.")] = "HEAD",
    case: Annotated[str | None, typer.Option(help=CASE)] = None,
    by: Annotated[str, typer.Option(help="instructions (exact) | time")] = "instructions",
    cache: Cache = None,
) -> None:
    """Name the commit that made a case slower; without --case, the kernel region that grew most."""
    from moge_bench.perf import bisect, revisions

    with errors(OSError, ValueError, RuntimeError):
        repo, folder = revisions.repository_root(Path.cwd()), cache or revisions.default_cache()
        if by == "instructions":
            limit = Policy.instruction_threshold
            found = bisect.by_instructions(repo, good, bad, case, folder, limit, err.print)
        elif by == "time":
            found = bisect.by_time(repo, good, bad, case, folder, Policy(), err.print)
        else:
            raise ValueError(f"by must be 'instructions' or 'time', got {by!r}")
    print(found)


@app.command(name="history")
def history_command(
    output: Output = OUTPUT,
    count: Annotated[
        int, typer.Option(min=0, help="First count instructions of so many older commits.")
    ] = 0,
    cache: Cache = None,
) -> None:
    """Write history.html from history.jsonl: what each machine measured, commit by commit.

    --count goes back from HEAD along the main line over the commits that change csrc (csrc/cuda
    aside) or setup.py and have no count by this compiler yet, and adds them to the history: it
    builds each.
    """
    from moge_bench.perf import callgrind, history, history_page, machines, revisions
    from moge_bench.system import write_atomically

    with errors(OSError, ValueError, RuntimeError):
        repo, path = revisions.repository_root(Path.cwd()), output / "history.jsonl"
        machine = machines.toolchain(machines.compiler_version())
        known = {e["commit"] for e in history.read(path) if e["machine"] == machine}
        todo = [c for c in revisions.kernel_commits(repo, "HEAD") if c not in known][:count]
        if todo:
            callgrind.require_tools()
        for commit in todo:
            err.print(f"building and counting {commit[:12]}")
            folder = cache or revisions.default_cache()
            try:
                built = revisions.build(repo, commit, folder, commit[:12])
                entries = history.counted(callgrind.count(built), built)
            except (ValueError, RuntimeError) as error:  # an old commit may not build any more
                err.print(f"{commit[:12]} is left out: {error}", style="yellow", markup=False)
                continue
            history.append(path, entries)
        page = history_page.page(history.read(path), revisions.log(repo, "HEAD"))
        write_atomically(output / "history.html", page)
    err.print(f"wrote {output / 'history.html'}", markup=False)
