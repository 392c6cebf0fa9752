"""Which data a config names: a set that is known by name, or local files, told by their content."""

from __future__ import annotations

import functools
from pathlib import Path

from moge_bench.config import RunConfig
from moge_bench.data import images, text
from moge_bench.system import digest_files


def find_data(config: RunConfig) -> RunConfig:
    """Return ``config`` with the digest of its local data; ValueError if there is no such data.

    Known sets keep a digest of None: their names are enough. Local text has that of the files that
    are read of it, so that an edited corpus is another run, one name in two folders is two, and
    what else lies in the folder is nothing to it.
    """
    if config.data.kind == "images":
        images.check_name(config.data.name)
        return config
    text.check_name(config.data.name)
    if text.is_known(config.data.name):
        return config
    path = text.local_path(config.data.name)
    try:
        stamp = tuple((file, file.stat().st_mtime_ns) for file in text.corpus_files(path))
        data = config.data.model_copy(update={"digest": _digest(path, stamp)})
    except OSError as error:
        raise ValueError(f"data.name={config.data.name!r} cannot be read: {error}") from None
    return config.model_copy(update={"data": data})


@functools.lru_cache(maxsize=64)  # a grid asks for the same files at each of its arms
def _digest(path: Path, stamp: tuple[tuple[Path, int], ...]) -> str:
    return digest_files((file for file, _ in stamp), path if path.is_dir() else path.parent)
