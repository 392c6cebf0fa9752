"""Image classification as a task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from moge_bench.config import ImageBackboneConfig, ImageDataConfig, RunConfig
from moge_bench.data.augment import augment, augment_pixels
from moge_bench.data.decoded import DecodedSplit, Standard, TrainingSplit, finish
from moge_bench.data.images import DATASETS, ImageSplit, load_decoded, load_images
from moge_bench.training.evaluate import Evaluation, evaluate_images
from moge_bench.training.ranks import Ranks
from moge_bench.training.task import Batch, Task, check_batch_size, spread


class ImageTask(Task):
    """Image classification.

    A shipped set is in memory, whole and standardised; another is decoded by worker processes,
    which augment too.
    """

    def __init__(self, config: RunConfig, data: ImageDataConfig) -> None:
        assert isinstance(config.model, ImageBackboneConfig)  # RunConfig has checked the pair
        model = config.model
        self._data, self._size, self._num_classes = data, model.image_size, model.num_classes
        self._label_smoothing = config.training.label_smoothing
        self._splits: dict[str, ImageSplit] | dict[str, DecodedSplit]
        if data.name in DATASETS:
            self._splits = load_images(data.name)
            self._check_shipped(model.num_channels)
        else:
            self._splits = load_decoded(
                data, model.image_size, model.num_channels, model.num_classes
            )

    def _check_shipped(self, channels: int) -> None:
        data, training = self._data, self._splits["training"]
        assert isinstance(training, ImageSplit)
        images, most = training.images, int(training.labels.max())
        wanted = (channels, self._size, self._size)
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"data.name={data.name!r} has images of {tuple(images.shape[1:])}, and the model "
                f"takes (model.num_channels, model.image_size, model.image_size) = {wanted}"
            )
        if most >= self._num_classes:
            raise ValueError(
                f"data.name={data.name!r} has labels up to {most}: model.num_classes must be at "
                f"least {most + 1}, got {self._num_classes}"
            )
        if data.mean is not None:
            raise ValueError(
                f"data.mean and data.std are those of the shipped data.name={data.name!r}: leave "
                f"them out, got {data.mean} and {data.std}"
            )

    @property
    def training_data(self) -> Dataset:
        """Images with labels."""
        return self._splits["training"]

    def loader(
        self, batch_size: int, seed: int, *, pin_memory: bool = False, ranks: Ranks | None = None
    ) -> DataLoader:
        """Return a shuffled loader of full batches; its order depends on ``seed`` alone."""
        split = self._splits["training"]
        if isinstance(split, ImageSplit):
            return super().loader(batch_size, seed, pin_memory=pin_memory, ranks=ranks)
        check_batch_size(batch_size, len(split))
        training = TrainingSplit(split, self._data, self._num_classes)
        part = (ranks or Ranks()).share
        return training.loader(batch_size, seed, pin_memory=pin_memory, part=part)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return images of a shipped set augmented as the config says, and their labels."""
        images, labels = batch
        data, known = self._data, DATASETS[self._data.name]
        if data.resized_crop is None and not data.rand_augment:
            images = augment(
                images, generator, flip=data.flip, crop_padding=data.crop_padding, fill=known.black
            )
        else:
            standard = Standard((known.mean,), (known.std,))
            pixels = standard.undo(images).clamp(0, 1).unbind()
            images = standard.apply(augment_pixels(pixels, generator, data, self._size))
        return finish(images, labels, generator, data, self._num_classes)

    def validation_examples(self, count: int) -> Batch:
        """Return images and their labels."""
        split = self._splits["validation"]
        return split.__getitems__(spread(count, len(split)).tolist())

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy, with the config's label smoothing.

        The targets are labels (B,), or shares of classes (B, num_classes) of mixed images.
        """
        images, targets = batch
        logits = model(images).logits.float()
        return F.cross_entropy(logits, targets, label_smoothing=self._label_smoothing)

    def evaluate(
        self, model: nn.Module, split: str, step: int, ranks: Ranks | None = None
    ) -> Evaluation:
        """Return top-1 and top-5 accuracy and the cross-entropy of the whole split."""
        return evaluate_images(model, self._splits[split], name=split, step=step, ranks=ranks)
