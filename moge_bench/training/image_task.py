"""Image classification as a task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from moge_bench.config import ImageDataConfig, RunConfig
from moge_bench.data.augment import augment
from moge_bench.data.images import DATASETS, load_images
from moge_bench.training.evaluate import Evaluation, evaluate_images
from moge_bench.training.task import Batch, Task


class ImageTask(Task):
    """Image classification."""

    def __init__(self, config: RunConfig, data: ImageDataConfig) -> None:
        self._splits = load_images(data.name)
        self._data = data
        self._label_smoothing = config.training.label_smoothing

    @property
    def training_data(self) -> Dataset:
        """Images with labels."""
        return self._splits["training"]

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the images flipped and cropped as the config says, and their labels."""
        images, labels = batch
        images = augment(
            images, generator, flip=self._data.flip, crop_padding=self._data.crop_padding,
            fill=DATASETS[self._data.name].black,
        )  # fmt: skip
        return images, labels

    def first_validation(self, count: int) -> Batch:
        """Return images and their labels."""
        split = self._splits["validation"]
        return split.images[:count], split.labels[:count]

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy, with the config's label smoothing."""
        images, labels = batch
        logits = model(images).logits.float()
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)

    def evaluate(self, model: nn.Module, split: str, step: int) -> Evaluation:
        """Return top-1 and top-5 accuracy and the cross-entropy of the whole split."""
        return evaluate_images(model, self._splits[split], name=split, step=step)
