"""The original files of MNIST, Fashion-MNIST and CIFAR, which hold whole splits as arrays.

Formats: idx, https://yann.lecun.com/exdb/mnist; CIFAR, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moge_bench.data.image_sources import ArraySource, Labelled

_SIDE = 32  # of CIFAR's images
_PIXELS = 3 * _SIDE * _SIDE


def find_arrays(folder: Path) -> dict[str, Labelled] | None:
    """Return the splits of a folder of idx files or of CIFAR batches, or None for another one.

    ValueError names the file that is missing or damaged.
    """
    if _idx_file(folder, "train", "images") is not None:
        return {
            split: _read_idx(folder, prefix)
            for split, prefix in (("training", "train"), ("test", "t10k"))
        }
    for training, test in (
        ([f"data_batch_{number}" for number in range(1, 6)], "test_batch"),  # CIFAR-10
        (["train"], "test"),  # CIFAR-100
    ):
        for suffix in (".bin", ""):
            if (folder / f"{training[0]}{suffix}").is_file():
                files = [folder / f"{name}{suffix}" for name in training]
                read = _read_cifar_binary if suffix else _read_cifar_python
                return {
                    "training": _join(files, read),
                    "test": _join([folder / f"{test}{suffix}"], read),
                }
    return None


def _idx_file(folder: Path, prefix: str, kind: str) -> Path | None:
    dimensions = {"images": 3, "labels": 1}[kind]
    for between in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{prefix}-{kind}{between}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _read_idx(folder: Path, prefix: str) -> Labelled:
    arrays, paths = [], []
    for kind in ("images", "labels"):
        path = _idx_file(folder, prefix, kind)
        if path is None:
            raise ValueError(
                f"{folder} has no {prefix}-{kind}-idx{3 if kind == 'images' else 1}-ubyte, with or "
                "without .gz"
            )
        paths.append(path)
        arrays.append(_idx_array(path, 3 if kind == "images" else 1))
    images, labels = arrays
    where = ", ".join(map(str, paths))
    if len(images) != len(labels):
        raise ValueError(f"{where} hold {len(images)} images and {len(labels)} labels")
    return Labelled(ArraySource(images, where), labels.tolist(), where)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """Return the array of an idx file: 0, 0, type 8 (uint8), dimensions, sizes, values."""
    data = _bytes_of(path)
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no idx file of bytes in {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", data[4:head])
    if len(data) != head + math.prod(sizes):
        raise ValueError(
            f"{path} is damaged: sizes {sizes} need {math.prod(sizes)} bytes after the first "
            f"{head}, got {len(data) - head}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(sizes)


def _bytes_of(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _join(files: list[Path], read: Any) -> Labelled:
    parts = [read(path) for path in files]
    where = ", ".join(map(str, files))
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return Labelled(ArraySource(images, where), labels.tolist(), where)


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Return (n, 32, 32, 3) of rows of 3,072: all red, all green, all blue values."""
    return pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)


def _read_cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one label (CIFAR-10), or a coarse and a fine one (CIFAR-100), and 3,072 pixels."""
    data = np.frombuffer(_bytes_of(path), np.uint8)
    num_labels = 2 if path.name in ("train.bin", "test.bin") else 1
    row = num_labels + _PIXELS
    if not len(data) or len(data) % row:
        raise ValueError(f"{path} is damaged: {len(data)} bytes are no rows of {row}")
    rows = data.reshape(-1, row)
    return _planes(rows[:, num_labels:]), rows[:, num_labels - 1]


def _read_cifar_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(_bytes_of(path)), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], np.uint8)
        labels = np.asarray(batch[b"fine_labels" if b"fine_labels" in batch else b"labels"])
        if pixels.shape != (len(labels), _PIXELS):
            raise ValueError(f"data has the shape {pixels.shape} for {len(labels)} labels")
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError,
            AttributeError, ImportError, IndexError) as error:  # fmt: skip
        raise ValueError(f"{path} is no batch of CIFAR: {error}") from None
    return _planes(pixels), labels


class _ArraysOnly(pickle.Unpickler):
    """Makes arrays of numpy and nothing else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.replace("numpy._core", "numpy.core")
        if (package, name) in {
            ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:  # fmt: skip
            if name == "_reconstruct":
                return np.empty(0).__reduce__()[0]
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
