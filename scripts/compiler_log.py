"""What the compilers say goes to a file, and of a build that fails the errors are shown first.

setup.py builds within it. Templates make a compiler say hundreds of lines of warnings and notes,
and the one that matters is somewhere in the middle.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# gcc, clang and nvcc; nvcc's assembler; the linker.
_ERROR = re.compile(
    r"\b(?:fatal )?error ?: |^ptxas (?:fatal|error)|undefined reference to|\bld: (?!warning)"
)
_SHOWN = 5
_FOLLOWING = 3  # the source line, the caret under it, a note


def first_errors(log: str) -> str:
    """Return the first errors in a compiler's output, each with the lines that explain it.

    Five errors at most, since later ones mostly follow from the first; the last 20 lines where no
    line is an error. Commands are left out.
    """
    lines = log.splitlines()
    places = [i for i, line in enumerate(lines) if _ERROR.search(line)]
    if not places:
        return "\n".join(lines[-20:])
    shown: list[str] = []
    for i, place in enumerate(places[:_SHOWN]):
        after = places[i + 1] if i + 1 < len(places) else len(lines)
        shown += lines[place : min(after, place + 1 + _FOLLOWING)]
    if len(places) > _SHOWN:
        shown.append(f"... and {len(places) - _SHOWN} more")
    return "\n".join(shown)


def num_warnings(log: str) -> int:
    """Return how many warnings a compiler's output holds."""
    return len(re.findall(r"\bwarning(?: #\S+)?: ", log))


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """Send standard output and error to the file, those of child processes included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with path.open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
