"""The command line, ``moge-bench``. Imported by nobody; heavy imports wait for their command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from moge_bench.cli.terminal import forgiving, reader_is_gone
from moge_bench.perf.cli import app as perf_app

if TYPE_CHECKING:
    from moge_bench.config import RunConfig
    from moge_bench.runs.execute import Progress
    from moge_bench.runs.record import RecordStore
    from moge_bench.study.grid import Grid

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Topographic group-norm routing for Mixture-of-Experts models: benchmarks and ablations.",
)  # fmt: skip
# Imports no suite library itself; its commands do when they run.
app.add_typer(perf_app, name="perf")
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

ResultsDir = Annotated[Path, typer.Option("--results", help="Folder of runs/ and tables/.")]


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn what a user can mend into one sentence: exit code 2, or 1 for the machine's refusals."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            raise  # ``main`` ends quietly
        err.print(f"moge-bench: {escape(str(error))}")
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
    except KeyboardInterrupt:
        err.print("moge-bench: interrupted; finished cells are kept, the rest will run next time")
        raise typer.Exit(130) from None


@app.command()
def doctor() -> None:
    """Say what is built, which backends run, which data are found; exit 1 if anything is broken."""
    from moge_bench.doctor import run_checks

    checks = run_checks()
    for check in checks:
        mark = {True: "ok    ", False: "BROKEN", None: "      "}[check.ok]
        out.print(f"{mark} {check.name:<28} {escape(check.detail)}")
    raise typer.Exit(any(check.ok is False for check in checks))


@app.command()
def train(
    preset: str,
    method: Annotated[
        str | None, typer.Option(help="dense, moe or moge; default: the preset's.")
    ] = None,
    seed: int = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value, repeatable.")
    ] = None,
    results: ResultsDir = Path("results/local"),
) -> None:
    """Train one run and save its record."""
    with _user_errors():
        from moge_bench.presets import resolve
        from moge_bench.runs.record import RecordStore

        config = resolve(preset, method, dict(map(_assignment, settings or [])), seed)
        store = RecordStore(results)
        failed = _run_cells([config], store, jobs=1, executor="local")
        record = store.read(config.hash())
    if record is not None:
        out.print(escape(record.summary))
        out.print(escape(f"record: {store.path(config.hash())}"))
    raise typer.Exit(1 if failed else 0)


@app.command()
def ablate(
    grid_file: Annotated[Path | None, typer.Argument(help="Default: the quick grid.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; default: cores.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for many machines.")] = "local",
    results: ResultsDir = Path("results/local"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Train at most this many cells; time after the last.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells, train none.")] = False,
) -> None:
    """Run the cells of a grid that have no record, time them, print the table."""
    with _user_errors():
        from moge_bench.runs.execute import pending
        from moge_bench.runs.record import RecordStore, label
        from moge_bench.study.grid import default_grid_path, load_grid

        if executor not in ("local", "ray"):
            raise ValueError(f"--executor must be 'local' or 'ray', got {executor!r}")
        grid = load_grid(grid_file or default_grid_path())
        store = RecordStore(results)
        todo = pending(grid.configs, store)
        done = len(grid.configs) - len(todo)
        out.print(f"{grid.file.name}: {len(grid.configs)} runs, {done} finished, {len(todo)} to do")
        if dry_run:
            for config in grid.configs:
                state = "to do   " if config in todo else "finished"
                out.print(f"{state} {config.hash()} {escape(label(config))}")
            return
        grid.save(results)
        failed = _run_cells(todo[:limit], store, jobs=jobs, executor=executor)
        # Cells are timed against each other, so those still to come would make it stale.
        timed = (limit is not None and limit < len(todo)) or _measure(grid, store)
        _print_table(grid, store)
    if failed:
        err.print(
            f"moge-bench: {failed} of {len(todo[:limit])} cells did not finish, for the reasons "
            "above; the next ablate tries them again"
        )
    if failed or not timed:
        raise typer.Exit(1)


@app.command()
def tables(results: ResultsDir = Path("results")) -> None:
    """Rebuild and print the tables of every grid that was run in the results folder."""
    with _user_errors():
        from moge_bench.runs.record import RecordStore
        from moge_bench.study.grid import load_grid

        for file in _run_grids(results):
            _print_table(load_grid(file), RecordStore(results))


@app.command()
def figures(results: ResultsDir = Path("results")) -> None:
    """Redraw the figures of every grid that was run in the results folder."""
    with _user_errors():
        from moge_bench.publish.figures import write_figures
        from moge_bench.runs.record import RecordStore
        from moge_bench.study.grid import load_grid

        for file in _run_grids(results):
            for path in write_figures(load_grid(file), RecordStore(results), results / "figures"):
                out.print(escape(f"written: {path}"))


def _run_grids(results: Path) -> list[Path]:
    files = sorted((results / "grids").glob("*.yaml"))
    if not files:
        raise ValueError(f"no grid was run in {results}; `moge-bench ablate` runs one")
    return files


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes a.b=value, got {text!r}")
    from moge_bench.config.words import read_value

    return path, read_value(path, value)


def _run_cells(
    configs: list[RunConfig], store: RecordStore, *, jobs: int | None, executor: str
) -> int:
    """Run cells with a progress bar; return how many failed or could not be written."""
    if not configs:
        return 0
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from moge_bench.runs import execute
    from moge_bench.runs.provenance import available_cores
    from moge_bench.runs.record import label

    threads = max(config.training.threads for config in configs)
    if executor == "ray":
        reports: Iterator[Progress] = execute.run_on_ray(configs, store, jobs)
    else:
        reports = execute.run_locally(configs, store, jobs or max(available_cores() // threads, 1))
    failed = ended = 0
    steps: dict[str, int] = {}
    columns = (
        TextColumn("cells {task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("steps, left"), TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with Bar(*columns, console=err, disable=not sys.stderr.isatty()) as bar:
        total = sum(config.training.steps for config in configs)
        task = bar.add_task(f"0/{len(configs)}", total=total)
        for report in reports:
            steps[report.config.hash()] = report.steps
            if report.status is not None:
                ended += 1
                failed += report.status != "finished"
                words = f"[{ended}/{len(configs)}] {report.status}: {label(report.config)}"
                bar.console.print(escape(f"{words}, {report.message}"))
            bar.update(task, completed=sum(steps.values()), description=f"{ended}/{len(configs)}")
    return failed


def _measure(grid: Grid, store: RecordStore) -> bool:
    """Run the speed pass where it is due; False if it failed, which costs no trained cell."""
    from moge_bench.perf.cells import measure_grid

    def announce(count: int) -> None:
        err.print(f"timing {count} configs in turns, nothing else running")

    try:
        measure_grid(grid, store, announce)
    except (OSError, RuntimeError) as error:
        err.print(f"moge-bench: the speed pass failed: {escape(str(error))}")
        return False
    return True


def _print_table(grid: Grid, store: RecordStore) -> None:
    from moge_bench.publish.tables import write_tables

    folder = store.root / "tables"
    sys.stdout.write(write_tables(grid, store, folder) + "\n")
    out.print(escape(f"written: {folder / grid.file.name}.md, .tex, .csv"))


def main() -> None:
    """Entry point of the console script."""
    with forgiving():
        app()
