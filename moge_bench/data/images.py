"""Image data sets, split into training, validation and test, as standardised tensors.

Shipped: part of Fashion-MNIST. Others come through ``datasets`` (image_hub.py) or from a folder
(image_files.py), and are decoded when they are asked for (decoded.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from moge_bench.config import ImageDataConfig, nearest
from moge_bench.data.assets import ASSETS
from moge_bench.data.decoded import (
    DecodedSplit,
    Standard,
    divide,
    num_workers,
    of_each_class,
)
from moge_bench.data.image_files import find_splits
from moge_bench.data.image_hub import HUB, load_hub
from moge_bench.data.pixel_figures import measure

_VALIDATION_PER_CLASS = 100


@dataclass(frozen=True)
class ImageSet:
    """A data set that is known by name.

    Attributes:
        asset: the shipped file (data/assets.py).
        mean, std: of a pixel of the full training set, scaled to 0..1.
        test_per_class: the first so many test images of each class are its test split; None: all.
    """

    asset: str
    mean: float
    std: float
    test_per_class: int | None = None

    @property
    def black(self) -> float:
        """A standardised pixel of value 0."""
        return -self.mean / self.std


DATASETS = {
    "fashion-mnist-10k": ImageSet("fashion-mnist-10k", 0.2860, 0.3530),
    # What records before the whole test set was shipped were measured on.
    "fashion-mnist-subset": ImageSet("fashion-mnist-10k", 0.2860, 0.3530, test_per_class=200),
}


@dataclass(frozen=True)
class ImageSplit(Dataset):
    """Images (n, channels, height, width) float32 with labels (n,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a whole batch with one gather; a DataLoader calls this when it exists."""
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]

    def part(self, chosen: slice) -> ImageSplit:
        """Return the split of the images ``chosen``."""
        return ImageSplit(self.images[chosen], self.labels[chosen])

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the whole split in order; the last batch may be smaller."""
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


def is_known(name: str) -> bool:
    """Return whether ``name`` is an image set that is known by name, not a path."""
    return name in DATASETS or name in HUB


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a known image set or an existing folder."""
    if not is_known(name) and not os.path.exists(local_path(name)):
        known = [*DATASETS, *HUB]
        hint = f" ({local_path(name).absolute()})" if os.sep in name else nearest(name, known)
        raise ValueError(f"no image set or folder is called {name!r}{hint}")


def local_path(name: str) -> Path:
    """Return the path that ``name`` is, ``~`` expanded; ValueError where it cannot be."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"the path {name!r} cannot be expanded: {error}") from None


def load_decoded(
    data: ImageDataConfig, size: int, channels: int, num_classes: int
) -> dict[str, DecodedSplit]:
    """Return the splits of a set that is not shipped, as a model takes them.

    The images are size x size with ``channels``. Mean and deviation are those of ``data``, else of
    the known set, else measured. Raises ValueError, naming file or folder, for what cannot be read,
    and for labels that ``num_classes`` does not have.
    """
    check_name(data.name)
    known = HUB.get(data.name)
    found = load_hub(data.name) if known else find_splits(local_path(data.name))
    if data.mean is not None and data.std is not None:
        standard = Standard(data.mean, data.std)
    else:
        standard = known.standard if known else measure(found["training"], channels)
    if len(standard.mean) == 1:
        standard = Standard(standard.mean * channels, standard.std * channels)
    if len(standard.mean) != channels:
        raise ValueError(
            f"data.mean={standard.mean} must have model.num_channels={channels} values"
        )
    splits = {}
    for name, (labelled, indices) in divide(found, data.validation_share).items():
        labels = torch.as_tensor(labelled.labels, dtype=torch.int64)
        if int(labels.max()) >= num_classes:
            raise ValueError(
                f"{labelled.where} has labels up to {int(labels.max())}: model.num_classes must be "
                f"at least {int(labels.max()) + 1}, got {num_classes}"
            )
        splits[name] = DecodedSplit(
            labelled.source, indices, labels[indices], size, channels, standard, num_workers(data)
        )
    return splits


def load_images(name: str) -> dict[str, ImageSplit]:
    """Return the splits "training", "validation" and "test" of the shipped data set ``name``.

    Validation is the last 100 training images of each class: 9,000 / 1,000 / 10,000 images, and
    2,000 in the test split of "fashion-mnist-subset".
    Raises ValueError for an unknown name, a damaged file or a class of too few images.
    """
    if name not in DATASETS:
        raise ValueError(f"no image set is shipped as {name!r}{nearest(name, list(DATASETS))}")
    known = DATASETS[name]
    with np.load(ASSETS[known.asset].check()) as arrays:
        training = ImageSplit(*_to_tensors(known, arrays["train_images"], arrays["train_labels"]))
        test = ImageSplit(*_to_tensors(known, arrays["test_images"], arrays["test_labels"]))
    if known.test_per_class is not None:
        test = _subset(test, of_each_class(test.labels, lambda _: slice(known.test_per_class)))
    label, fewest = min(enumerate(torch.bincount(training.labels).tolist()), key=lambda it: it[1])
    if fewest <= _VALIDATION_PER_CLASS:
        raise ValueError(
            f"{known.asset!r} must have more than {_VALIDATION_PER_CLASS} training images of each "
            f"class, the last {_VALIDATION_PER_CLASS} of which are its validation split; it has "
            f"{fewest} of class {label}"
        )
    held_out = of_each_class(training.labels, lambda _: slice(-_VALIDATION_PER_CLASS, None))
    return {
        "training": _subset(training, ~held_out),
        "validation": _subset(training, held_out),
        "test": test,
    }


def _subset(split: ImageSplit, chosen: torch.Tensor) -> ImageSplit:
    return ImageSplit(split.images[chosen], split.labels[chosen])


def _to_tensors(
    known: ImageSet, images: np.ndarray, labels: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(images).to(torch.float32).unsqueeze(1) / 255.0
    return (pixels - known.mean) / known.std, torch.from_numpy(labels).to(torch.int64)
