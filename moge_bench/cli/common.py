"""What every group of commands shares: consoles, the results folder, errors in one sentence."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from moge_bench.cli.terminal import reader_is_gone

# For a terminal lines are broken between words; what goes to a file or a pipe is not.
out = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
err = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)

RESULTS = Path("results/local")
ResultsDir = Annotated[Path, typer.Option("--results", help="Folder of runs, studies and speed.")]


def print_markdown(text: str) -> None:
    """Print ``text``: to a terminal laid out in its width, to a file or a pipe as it is."""
    if out.is_terminal:
        from rich.markdown import Markdown

        out.print(Markdown(text))
    else:
        sys.stdout.write(text + "\n")


_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC)


def sentence(error: Exception) -> str:
    """Return what is wrong and what to do; of what the disk refuses, where."""
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        reason = (error.strerror or "").lower()
        return (
            f"{error.filename} cannot be used: {reason}; mend that, or give another folder with "
            "--results"
        )
    return str(error)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a user can mend into one sentence: exit code 2, or 1 for the machine's refusals."""
    try:
        yield
    except ModuleNotFoundError as error:
        err.print(
            f"moge-bench: the package {error.name} is missing; this command needs the extra "
            "'suite': pip install 'moge-bench[suite]'", markup=False,
        )  # fmt: skip
        raise typer.Exit(1) from None
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            raise  # ``main`` ends quietly
        err.print(f"moge-bench: {escape(sentence(error))}")
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
