"""Commands that train: ``train`` and ``ablate``."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from moge_bench.cli.common import RESULTS, ResultsDir, err, out, user_errors
from moge_bench.cli.complete import complete_method, complete_preset
from moge_bench.cli.read import print_tables
from moge_bench.methods import METHODS

if TYPE_CHECKING:
    from moge_bench.config import RunConfig
    from moge_bench.runs.execute import Progress
    from moge_bench.runs.store import RecordStore
    from moge_bench.study.grid import Grid


def train(
    preset: Annotated[
        str, typer.Argument(help="`moge-bench presets` lists them.", autocompletion=complete_preset)
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(METHODS)}; default: the preset's.", autocompletion=complete_method
        ),
    ] = None,
    seed: int = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value, repeatable.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on from the state that a killed run left."),
    ] = True,
    results: ResultsDir = RESULTS,
) -> None:
    """Train one run and save its record; a run that has one is not trained again.

    Under torchrun all processes share it: --set training.processes=N.
    """
    with user_errors():
        from moge_bench.data.registry import find_data
        from moge_bench.presets import check_effect, resolve
        from moge_bench.runs.execute import drop_state, pending
        from moge_bench.runs.store import RecordStore, check_layout
        from moge_bench.system import check_writable
        from moge_bench.training.ranks import Ranks, check_processes
        from moge_bench.training.tasks import check_tasks

        overrides = dict(map(_assignment, settings or []))
        config = find_data(resolve(preset, method, overrides, seed))
        check_effect(config, overrides)
        check_processes(config)
        main = Ranks.launched().is_main
        check_tasks([config])
        check_layout(results)
        store = RecordStore(results)
        check_writable(store.runs)  # before it trains for nothing
        todo = pending([config], store)
        if not todo and main:
            out.print("it has a record already; move that away to train it again")
        if not resume and main:
            drop_state(results, config)
        failed = _execute(todo, store, jobs=1, executor="local", speaks=main)
        record = store.read(config.run_id) if main else None
    if record is not None:
        out.print(escape(record.summary))
        out.print(escape(f"record: {store.path(config.run_id)}"))
    raise typer.Exit(1 if failed else 0)


def ablate(
    grid_file: Annotated[Path | None, typer.Argument(help="Default: the quick grid.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: cores, and 4 on a GPU.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for many machines.")] = "local",
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th run of the study, from the i-th on; job i of n.")
    ] = "1/1",
    results: ResultsDir = RESULTS,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="Train at most this many; 0: declare the study, show its tables."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs, train none.")] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="With --dry-run: FLOPs, memory, GPU hours.")
    ] = False,
) -> None:
    """Run the arms of a study that have no record, time them, print the tables."""
    with user_errors():
        from moge_bench.cli.costs import print_costs
        from moge_bench.data.registry import is_here
        from moge_bench.runs.execute import pending
        from moge_bench.runs.store import RecordStore, check_layout
        from moge_bench.study.grid import default_grid_path, load_grid
        from moge_bench.study.manifest import compare_manifest, make_manifest, save_manifest
        from moge_bench.system import check_writable
        from moge_bench.training.ranks import Ranks
        from moge_bench.training.tasks import check_tasks

        if Ranks.launched().count > 1:
            raise ValueError(
                "ablate starts the processes of its runs itself, one a run; a run of many is "
                "started by torchrun with the command train"
            )
        if executor not in ("local", "ray"):
            raise ValueError(f"--executor must be 'local' or 'ray', got {executor!r}")
        first, step = _shard(shard)
        if cost and not dry_run:
            raise ValueError("--cost tells what runs would cost: give --dry-run too")
        grid = load_grid(grid_file or default_grid_path())
        if not cost and limit != 0:  # a dry run tells what the run would
            _check_one_process(grid)
        # What trains nothing downloads nothing.
        trains = not dry_run and limit != 0
        read = [arm.configs[0] for arm in grid.arms if trains or is_here(arm.configs[0])]
        check_tasks(read)
        check_layout(results)
        store = RecordStore(results)
        todo = {config.run_id: config for config in pending(grid.configs, store)}
        # Of all runs, not of those left: jobs that start later must not divide them anew.
        share = [run_id for *_, run_id in grid.runs][first::step]
        waiting = [run_id for run_id in share if run_id in todo]
        chosen = [todo[run_id] for run_id in waiting[:limit]]
        name = grid.file.name if step == 1 else f"{grid.file.name}, shard {shard}"
        done = len(share) - len(waiting)
        out.print(f"{name}: {len(share)} runs, {done} done, {len(waiting)} to do")
        manifest = make_manifest(grid)
        for note in compare_manifest(results, manifest):
            out.print(f"note: {escape(note)}")
        if dry_run:
            _list_runs(grid, set(share), set(waiting), set(waiting[:limit]))
            if cost:
                print_costs(chosen)
            return
        check_writable(store.runs)
        save_manifest(results, manifest)
        failed = _execute(chosen, store, jobs=jobs, executor=executor)
        # Arms are timed against each other, so those still to come would make it stale.
        left = len(todo) - len(chosen)
        timed = left > 0 or not trains or _measure(grid, store)
        if left:
            out.print(f"{left} runs are left; the ablate after which none is times the arms")
        print_tables(results, grid.file.name)
    if failed:
        err.print(
            f"moge-bench: {failed} of {len(chosen)} runs did not finish, for the reasons "
            "above; the next ablate tries them again"
        )
    if failed or not timed:
        raise typer.Exit(1)


def _check_one_process(grid: Grid) -> None:
    for arm in grid.arms:
        if (processes := arm.configs[0].training.processes) > 1:
            raise ValueError(
                f"ablate trains runs of one process, and {grid.file.name} has "
                f"training.processes={processes}: start each with torchrun --nproc-per-node "
                f"{processes} -m moge_bench.cli train ..., and `ablate --limit 0` declares the "
                "study and makes its tables"
            )


def _shard(text: str) -> tuple[int, int]:
    """Return (first, step) of "i/n", counted from 0."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n, e.g. 2/8, got {text!r}")
    return int(index) - 1, int(count)


def _list_runs(grid: Grid, share: set[str], waiting: set[str], chosen: set[str]) -> None:
    """Print a line a run of ``share``: state, id, and the axis values that tell it from others.

    "to do" are those ``chosen``; --limit leaves the others for later.
    """
    lines = []
    for arm, config, run_id in grid.runs:
        if run_id in share:
            values = " ".join(f"{axis}={value}" for axis, value in arm.coordinates[0].items())
            state = "to do" if run_id in chosen else "later" if run_id in waiting else "finished"
            lines.append(f"{state:<8} {run_id} {values} seed={config.seed}")
    print("\n".join(lines))


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes a.b=value, got {text!r}")
    from moge_bench.config.words import read_value

    return path, read_value(path, value)


def _execute(
    configs: list[RunConfig], store: RecordStore, *, jobs: int | None, executor: str,
    speaks: bool = True,
) -> int:  # fmt: skip
    """Execute runs with a progress bar; return how many failed or could not be written.

    Unless it ``speaks`` it tells of failures alone.
    """
    if not configs:
        return 0
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from moge_bench.runs.record import label

    failed = ended = 0
    steps: dict[str, int] = {}
    columns = (
        TextColumn("runs {task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("steps, left"), TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with (
        Bar(*columns, console=err, disable=not (speaks and sys.stderr.isatty())) as bar,
        # Wherever Ctrl-C falls, the runs under way are ended.
        closing(_reports(configs, store, jobs, executor)) as reports,
    ):
        total = sum(config.training.steps for config in configs)
        task = bar.add_task(f"0/{len(configs)}", total=total)
        for report in reports:
            steps[report.config.run_id] = report.steps
            if report.status is not None:
                ended += 1
                fails = report.status not in ("finished", "diverged")
                failed += fails
                words = f"[{ended}/{len(configs)}] {report.status}: {label(report.config)}"
                if speaks or fails:
                    bar.console.print(escape(f"{words}, {report.message}"))
            bar.update(task, completed=sum(steps.values()), description=f"{ended}/{len(configs)}")
    return failed


def _reports(
    configs: list[RunConfig], store: RecordStore, jobs: int | None, executor: str
) -> Generator[Progress, None, None]:
    if executor == "ray":
        from moge_bench.runs.executors.ray import run_on_ray

        return run_on_ray(configs, store, jobs)
    from moge_bench.runs.executors.local import run_locally

    return run_locally(configs, store, jobs or _default_jobs(configs))


def _default_jobs(configs: list[RunConfig]) -> int:
    """Return how many runs go at a time: as many as the cores carry, and the GPU's memory."""
    from moge_bench.runs.executors.local import JOBS_PER_GPU
    from moge_bench.system import available_cores

    jobs = max(available_cores() // max(config.training.threads for config in configs), 1)
    on_gpu = any(config.device == "cuda" for config in configs)
    return min(jobs, JOBS_PER_GPU) if on_gpu else jobs


def _measure(grid: Grid, store: RecordStore) -> bool:
    """Run the speed pass where it is due; False if it failed, which costs no trained run."""
    from moge_bench.perf.cells import measure_study
    from moge_bench.runs.speed import SpeedStore

    def announce(count: int) -> None:
        err.print(f"timing {count} arms in turns, one process at a time; leave the machine idle")

    try:
        measure_study(grid, store, SpeedStore(store.root), announce)
    except (OSError, RuntimeError) as error:
        err.print(f"moge-bench: the speed pass failed: {escape(str(error))}")
        return False
    return True
