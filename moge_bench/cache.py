"""Files that can be made again. A cache that is damaged, closed or has no home is a miss."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from moge_bench.system import write_atomically


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
