"""Image data sets, split into training, validation and test, as standardised tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from moge_bench.config import nearest
from moge_bench.data.assets import ASSETS

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


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a known image set."""
    if name not in DATASETS:
        raise ValueError(f"no image set is called {name!r}{nearest(name, list(DATASETS))}")


def load_images(name: str) -> dict[str, ImageSplit]:
    """Return the splits "training", "validation" and "test" of data set ``name``.

    Validation is the last 100 training images of each class: 9,000 / 1,000 / 10,000 images, and
    2,000 in the test split of "fashion-mnist-subset".
    Raises ValueError for an unknown name or a damaged file.
    """
    check_name(name)
    known = DATASETS[name]
    with np.load(ASSETS[known.asset].check()) as arrays:
        training = ImageSplit(*_to_tensors(known, arrays["train_images"], arrays["train_labels"]))
        test = ImageSplit(*_to_tensors(known, arrays["test_images"], arrays["test_labels"]))
    if known.test_per_class is not None:
        test = _subset(test, _of_each_class(test.labels, slice(known.test_per_class)))
    held_out = _of_each_class(training.labels, slice(-_VALIDATION_PER_CLASS, None))
    return {
        "training": _subset(training, ~held_out),
        "validation": _subset(training, held_out),
        "test": test,
    }


def _of_each_class(labels: torch.Tensor, which: slice) -> torch.Tensor:
    """Return, (n,) bool, the images that are ``which`` of their class, in the order of the file."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero()[which]] = True
    return chosen


def _subset(split: ImageSplit, chosen: torch.Tensor) -> ImageSplit:
    return ImageSplit(split.images[chosen], split.labels[chosen])


def _to_tensors(
    known: ImageSet, images: np.ndarray, labels: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.from_numpy(images).to(torch.float32).unsqueeze(1) / 255.0
    return (pixels - known.mean) / known.std, torch.from_numpy(labels).to(torch.int64)


def evaluation_batches(
    split: ImageSplit, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the whole split in order; the last batch may be smaller."""
    for begin in range(0, len(split), batch_size):
        yield split.images[begin : begin + batch_size], split.labels[begin : begin + batch_size]
