"""Image data sets, split into training, validation and test, as standardised tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from moge_bench.config import nearest
from moge_bench.data.assets import ASSETS

# Each set's mean and standard deviation of a pixel, scaled to 0..1: of the full training set.
DATASETS = {"fashion-mnist-subset": (0.2860, 0.3530)}
_VALIDATION_PER_CLASS = 100


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

    Validation is the last 100 training images of each class: 9,000 / 1,000 / 2,000 images.
    Raises ValueError for an unknown name or a damaged file.
    """
    check_name(name)
    with np.load(ASSETS[name].check()) as arrays:
        images, labels = _to_tensors(name, arrays["train_images"], arrays["train_labels"])
        test = ImageSplit(*_to_tensors(name, arrays["test_images"], arrays["test_labels"]))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        held_out[(labels == label).nonzero()[-_VALIDATION_PER_CLASS:]] = True
    return {
        "training": ImageSplit(images[~held_out], labels[~held_out]),
        "validation": ImageSplit(images[held_out], labels[held_out]),
        "test": test,
    }


def _to_tensors(
    name: str, images: np.ndarray, labels: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = DATASETS[name]
    pixels = torch.from_numpy(images).to(torch.float32).unsqueeze(1) / 255.0
    return (pixels - mean) / std, torch.from_numpy(labels).to(torch.int64)


def evaluation_batches(
    split: ImageSplit, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the whole split in order; the last batch may be smaller."""
    for begin in range(0, len(split), batch_size):
        yield split.images[begin : begin + batch_size], split.labels[begin : begin + batch_size]
