"""Which data a config names: a set that is known by name, or local files, told by their content."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from moge_bench.cache import kept_text
from moge_bench.config import DENSE_RUN, ImageBackboneConfig, ImageDataConfig, RunConfig
from moge_bench.data import images, text
from moge_bench.data.decoded import Standard
from moge_bench.data.image_files import find_splits, image_set_files
from moge_bench.data.pixel_figures import measure
from moge_bench.system import digest_files

_MUCH = 2**28  # bytes: some seconds of reading
_Stamp = tuple[tuple[Path, int, int], ...]  # files with their sizes and times of change


def is_here(config: RunConfig) -> bool:
    """Whether the data of ``config`` are shipped or local: to read them needs no hub."""
    name = config.data.name
    if isinstance(config.data, ImageDataConfig):
        return name in images.DATASETS or not images.is_known(name)
    return name == text.SHIPPED or not text.is_known(name)


def find_data(config: RunConfig) -> RunConfig:
    """Return ``config`` with the digest of its local data; ValueError if there is no such data.

    Known sets keep a digest of None: their names are enough. Local data have that of the files that
    are read of them, so that an edited corpus is another run, one name in two folders is two, and
    what else lies in the folder is nothing to it. A local checkpoint that the model starts from has
    one too. Local images get the mean and the deviation of their pixels, where none are set.
    """
    config = _find_checkpoint(config)
    if isinstance(config.data, ImageDataConfig):
        return _find_images(config, config.data)
    text.check_name(config.data.name)
    if text.is_known(config.data.name):
        return config
    path = text.local_path(config.data.name)
    try:
        data = config.data.model_copy(
            update={"digest": _digest(path, _stamp_of(text.corpus_files(path)))}
        )
    except OSError as error:
        raise ValueError(f"data.name={config.data.name!r} cannot be read: {error}") from None
    return config.model_copy(update={"data": data})


def _find_images(config: RunConfig, data: ImageDataConfig) -> RunConfig:
    images.check_name(data.name)
    if images.is_known(data.name):
        return config
    assert isinstance(config.model, ImageBackboneConfig)  # RunConfig has checked the pair
    path = images.local_path(data.name)
    try:
        stamp = _stamp_of(image_set_files(path))
        found: dict[str, Any] = {"digest": _digest(path, stamp)}
        if data.mean is None:
            standard = _standard(path, found["digest"], config.model.num_channels)
            found |= {"mean": standard.mean, "std": standard.std}
    except OSError as error:
        raise ValueError(f"data.name={data.name!r} cannot be read: {error}") from None
    return config.model_copy(update={"data": data.model_copy(update=found)})


def _find_checkpoint(config: RunConfig) -> RunConfig:
    source = config.model.upcycled_from
    if source is None or source == DENSE_RUN:
        return config
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
            raise ValueError(
                f"model.upcycled_from={source!r} is neither a folder nor a hub name, owner/name"
            )
        return config
    weights = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if not weights or not (folder / "config.json").is_file():
        raise ValueError(
            f"model.upcycled_from={source!r} must hold config.json and model.safetensors, as "
            "transformers' save_pretrained writes them"
        )
    digest = _digest(folder, _stamp_of([folder / "config.json", *weights]))
    model = config.model.model_copy(update={"upcycled_digest": digest})
    return config.model_copy(update={"model": model})


def _stamp_of(files: list[Path]) -> _Stamp:
    facts = [(file, file.stat()) for file in files]
    return tuple((file, fact.st_size, fact.st_mtime_ns) for file, fact in facts)


@functools.lru_cache(maxsize=64)  # a grid asks for the same files at each of its arms
def _digest(path: Path, stamp: _Stamp) -> str:
    """Return the digest of the files' names and bytes.

    Of much data it is kept by names, sizes and times of change, so that ImageNet is read once.
    """
    root = path if path.is_dir() else path.parent
    files = [file for file, *_ in stamp]
    if sum(size for _, size, _ in stamp) < _MUCH:
        return digest_files(files, root)
    facts = json.dumps([str(root.absolute()), [[str(file), *fact] for file, *fact in stamp]])
    name = f"digest-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    return kept_text(name, lambda: digest_files(files, root))


@functools.lru_cache(maxsize=64)
def _standard(path: Path, digest: str, channels: int) -> Standard:
    """Return mean and deviation of the training pixels; kept by digest, since all are decoded."""
    name = f"pixels-{hashlib.sha256(f'{digest} {channels}'.encode()).hexdigest()[:16]}.json"

    def figures() -> str:
        found = measure(find_splits(path)["training"], channels)
        return json.dumps([found.mean, found.std])

    mean, std = json.loads(kept_text(name, figures))
    return Standard(tuple(mean), tuple(std))
