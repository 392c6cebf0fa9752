"""Files that can be made again. A cache that is damaged, closed or has no home is a miss."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from moge_bench.system import held, write_atomically


def cache_folder() -> Path | None:
    """Return moge-bench's folder under XDG_CACHE_HOME or ~/.cache, or None without a home.

    It need not exist, nor be writable.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(root or Path.home() / ".cache") / "moge-bench"
    except RuntimeError:  # HOME is unset and the user has no entry in /etc/passwd
        return None


def read_text(name: str) -> str | None:
    """Return what ``write_text`` kept under ``name``; None if it is absent or not whole."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        kept = json.loads((folder / name).read_text(encoding="utf-8"))
        text, digest = kept["text"], kept["sha256"]
        return text if digest == _digest(text) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_text(name: str, text: str) -> None:
    """Keep ``text`` under ``name`` with its digest, if that can be done.

    Two processes may write one name at once: each file is renamed into place whole.
    """
    folder = cache_folder()
    if folder is not None:
        with contextlib.suppress(OSError):
            kept = json.dumps({"sha256": _digest(text), "text": text})
            write_atomically(folder / name, kept)


def kept_text(name: str, make: Callable[[], str]) -> str:
    """Return what is kept under ``name``, made once, whoever asks at the same time.

    So the processes of torchrun read a large set once, not each. What takes long, and only that:
    others that make something wait for it. ``make``'s errors pass, and nothing is kept.
    """
    text = read_text(name)
    if text is not None:
        return text
    folder = cache_folder()
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with contextlib.suppress(OSError):  # without a place to wait at, each makes its own
                stack.enter_context(held(folder / "making"))
        text = read_text(name)
        if text is None:
            text = make()
            write_text(name, text)
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
