"""Output that the terminal cannot show, or that nobody reads, fails no command."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import io
import os
import select
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

_PLAIN = {"±": "+-", "×": "x", "λ": "lambda", "σ": "sigma", "–": "-", "—": "-", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Give what an encoding lacks in plain letters: ± as +-, é as e, else ?."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    pieces = []
    for letter in error.object[error.start : error.end]:
        base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        pieces.append(_PLAIN.get(letter) or base or "?")
    return "".join(pieces), error.end


codecs.register_error("moge_bench.plain", _plain)


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Run a command whose output may go to a narrow encoding, a closed pipe or nowhere.

    Exit code 1 where the reader has gone (``| head``) or the output cannot be written.
    """
    # Started with the stream closed (>&-), Python has None there.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="moge_bench.plain")
    _give_home()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_the_rest()
        raise SystemExit(1) from None


def reader_is_gone() -> bool:
    """Say whether stdout is a pipe that nobody reads any more."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are reported unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_the_rest() -> None:
    """Point stdout at nothing: Python flushes it once more on its way out, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())


def _give_home() -> None:
    """Give a process without a home folder a temporary one.

    matplotlib and others fail without, or make a folder called ~ where they stand.
    """
    try:
        Path.home()
    except RuntimeError:
        home = tempfile.mkdtemp(prefix="moge-bench-home-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        os.environ["HOME"] = home
