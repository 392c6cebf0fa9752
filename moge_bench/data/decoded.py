"""Splits whose images are decoded when they are asked for, in the workers of a DataLoader.

Legend: n images of a split, B of a batch, C channels, S the side of the model's images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from moge_bench.config import ImageDataConfig
from moge_bench.data.augment import augment_pixels, erase, mix, resized_crop
from moge_bench.data.image_sources import SPLITS, Labelled, Source
from moge_bench.system import available_cores

T = TypeVar("T")
Batch = tuple[torch.Tensor, torch.Tensor]
Key = tuple[int, int]  # an image's number and a seed
Part = Callable[[Sequence[Key]], Sequence[Key]]
CENTRE = 0.875  # of the shorter side of a larger image is kept in evaluation, as 224 of 256
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of a pixel in 0..1, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``pixels``, (..., C, H, W), standardised."""
        return (pixels - self._column(self.mean)) / self._column(self.std)

    def undo(self, images: torch.Tensor) -> torch.Tensor:
        """Return standardised ``images``, (..., C, H, W), as pixels in 0..1."""
        return images * self._column(self.std) + self._column(self.mean)

    @staticmethod
    def _column(values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[:, None, None]


@dataclass(frozen=True)
class DecodedSplit(Dataset):
    """Images of a source, as evaluation sees them: (B, C, S, S) float32 with labels (B,) int64.

    Attributes:
        source, indices: the split has those images of the source, in that order.
        labels: (n,) int64, of these.
        size, channels, standard: what the model takes.
        workers: processes that decode.
    """

    source: Source
    indices: torch.Tensor
    labels: torch.Tensor
    size: int
    channels: int
    standard: Standard
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a batch: the centre of each image, standardised."""
        images = torch.stack([centre(image, self.size) for image in self.pixels(indices)])
        return self.standard.apply(images), self.labels[torch.as_tensor(indices)]

    def pixels(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the images as they lie in the source, each (C, H, W) float32 in 0..1."""
        return [
            self.source.read(int(self.indices[index]), self.channels).float() / 255
            for index in indices
        ]

    def part(self, chosen: slice) -> DecodedSplit:
        """Return the split of the images ``chosen``."""
        return replace(self, indices=self.indices[chosen], labels=self.labels[chosen])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield the whole split in order; no random number of the process is used."""
        loader = DataLoader(
            self, batch_size, num_workers=self.workers, collate_fn=_as_is,
            generator=torch.Generator(),
        )  # fmt: skip
        yield from in_plain_words(loader)


def centre(image: torch.Tensor, size: int) -> torch.Tensor:
    """Return the centred square of ``image``, (C, H, W), resized to size x size.

    Its side is 7/8 of the shorter side where that is larger than ``size``, else all of it.
    """
    height, width = image.shape[-2:]
    side = min(height, width)
    side = max(round(side * CENTRE), 1) if side > size else side
    return resized_crop(image, ((height - side) // 2, (width - side) // 2, side, side), size)


@dataclass(frozen=True)
class TrainingSplit(Dataset):
    """The training images of ``split``, augmented as ``data`` says; a key is (index, seed).

    What is drawn for a batch comes from the seed of its first key alone, so it is the same in
    whatever process it is drawn.
    """

    split: DecodedSplit
    data: ImageDataConfig
    num_classes: int

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return a batch as it is learnt from."""
        indices = [index for index, _ in keys]
        generator = torch.Generator().manual_seed(keys[0][1])
        split = self.split
        images = split.pixels(indices)
        if self.data.resized_crop is None:
            images = [centre(image, split.size) for image in images]
        batch = split.standard.apply(augment_pixels(images, generator, self.data, split.size))
        labels = split.labels[torch.as_tensor(indices)]
        return finish(batch, labels, generator, self.data, self.num_classes)

    def loader(
        self, batch_size: int, seed: int, *, pin_memory: bool, part: Part | None = None
    ) -> DataLoader:
        """Return a loader of full batches; batches and their order depend on ``seed`` alone.

        ``part`` returns what is wanted of a batch's keys: the images of one of several processes,
        which are augmented and mixed among themselves.
        """
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            self, batch_sampler=SeededBatches(len(self), batch_size, generator, part),
            collate_fn=_as_is, num_workers=self.split.workers, pin_memory=pin_memory,
            generator=generator,
        )  # fmt: skip


class SeededBatches(BatchSampler):
    """Full batches of a new order each epoch, every image with a seed of its own.

    The order and the seeds come from ``generator``, in the process of the training: a worker has
    no generator, and so an epoch that is started anew from its state gives the same batches.
    """

    def __init__(
        self, count: int, batch_size: int, generator: torch.Generator, part: Part | None = None
    ) -> None:
        self.count, self.batch_size, self.generator = count, batch_size, generator
        self.part = part or list
        self.drop_last = True

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        order = torch.randperm(self.count, generator=self.generator).tolist()
        seeds = torch.randint(2**62, (self.count,), generator=self.generator).tolist()
        for begin in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = slice(begin, begin + self.batch_size)
            yield list(self.part(list(zip(order[chosen], seeds[chosen], strict=True))))


def finish(
    images: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
    data: ImageDataConfig,
    num_classes: int,
) -> Batch:
    """Return standardised ``images`` with rectangles erased, and the batch mixed, as ``data`` says.

    The labels become shares of classes, (B, num_classes) float32, where it is mixed.
    """
    if data.erasing:
        images = erase(images, generator, data.erasing)
    if not (data.mixup or data.cutmix):
        return images, labels
    return mix(
        images, labels, generator, num_classes=num_classes, mixup=data.mixup, cutmix=data.cutmix
    )


def divide(
    found: dict[str, Labelled], validation_share: float
) -> dict[str, tuple[Labelled, torch.Tensor]]:
    """Return {"training", "validation", "test"}, each with the numbers of its images.

    Without a validation split it is the last ``validation_share`` of each class of the training
    images, at least one. A validation split without a test split is the test split, as in
    ImageNet; without either the last share is the test split and the one before it validation.
    Raises ValueError for a class of which no training image would be left.
    """
    found = dict(found)
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    divided = {split: (it, torch.arange(len(it.labels))) for split, it in found.items()}
    training = found["training"]
    labels = torch.as_tensor(training.labels)
    kept = torch.ones(len(labels), dtype=torch.bool)
    shares = 0
    for split in ("test", "validation"):
        if split not in found:
            shares += 1
            which = functools.partial(_share, validation_share, shares)
            chosen = of_each_class(labels, which)
            divided[split] = training, chosen.nonzero().flatten()
            kept &= ~chosen
    divided["training"] = training, kept.nonzero().flatten()
    gone = sorted(set(labels.tolist()) - set(labels[kept].tolist()))
    if gone:
        raise ValueError(
            f"{training.where} has no training image of class {gone[0]} left: each class needs "
            f"more than {shares}, of which {shares} are held out for validation"
            f"{' and test' if shares > 1 else ''}, got {int((labels == gone[0]).sum())}"
        )
    return {split: divided[split] for split in SPLITS}


def _share(share: float, number: int, count: int) -> slice:
    """Return where the last, the last but one, ... share of ``count`` images is, at least one."""
    size = max(int(count * share), 1)
    return slice(max(count - number * size, 0), max(count - (number - 1) * size, 0))


def of_each_class(labels: torch.Tensor, which: Callable[[int], slice]) -> torch.Tensor:
    """Return, (n,) bool, the images that are ``which`` of their class, in their order.

    ``which`` is given the number of images of a class.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = (labels == label).nonzero()
        chosen[mine[which(len(mine))]] = True
    return chosen


def num_workers(data: ImageDataConfig) -> int:
    """Return how many processes decode: as set, or one less than the cores, at most 8."""
    if data.workers is not None:
        return data.workers
    return min(available_cores() - 1, _MOST_WORKERS)


def in_plain_words(batches: Iterable[T]) -> Iterator[T]:
    """Yield ``batches``; a ValueError of a worker comes without the worker's traceback."""
    try:
        yield from batches
    except ValueError as error:
        _, found, said = str(error).rpartition("\nValueError: ")
        if not found:
            raise
        raise ValueError(said.rstrip()) from None


def _as_is(batch: Any) -> Any:
    return batch
