"""What differs between kinds of data: batches, the task loss, the splits and their metrics."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from moge_bench.training.evaluate import Evaluation
from moge_bench.training.ranks import Ranks

Batch = tuple[torch.Tensor, torch.Tensor]


def spread(count: int, total: int) -> torch.Tensor:
    """Return min(count, total) numbers at equal distances over 0 to total - 1."""
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


def check_batch_size(batch_size: int, count: int) -> None:
    """Raise ValueError unless ``count`` examples make a full batch."""
    if batch_size > count:
        raise ValueError(f"batch_size must be at most {count} examples, got {batch_size}")


class Task(ABC):
    """A data set and its objective; ``train`` knows nothing else of either."""

    vocabulary_size: int | None = None

    @property
    @abstractmethod
    def training_data(self) -> Dataset:
        """Examples; ``__getitems__`` returns a whole batch (inputs, targets)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean task loss of a batch, (), in nats."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, split: str, step: int, ranks: Ranks | None = None
    ) -> Evaluation:
        """Return the metrics and routing statistics of "validation" or "test".

        Each of ``ranks`` evaluates its share, and returns those of the whole split.
        """

    def loader(
        self, batch_size: int, seed: int, *, pin_memory: bool = False, ranks: Ranks | None = None
    ) -> DataLoader:
        """Return a shuffled loader of full batches; its order depends on ``seed`` alone.

        Batches in pinned memory go to a GPU without a wait. Each of ``ranks`` is given its share
        of every batch.
        """
        check_batch_size(batch_size, len(self.training_data))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            self.training_data, batch_size, shuffle=True, drop_last=True, generator=generator,
            collate_fn=functools.partial(self._share, generator, ranks or Ranks()),
            pin_memory=pin_memory,
        )  # fmt: skip

    def _share(self, generator: torch.Generator, ranks: Ranks, batch: Batch) -> Batch:
        # Of the whole batch, prepared: what is drawn does not depend on how many ranks there are.
        inputs, targets = self.prepare(batch, generator)
        mine = ranks.slice_of(len(inputs), "examples of a batch")
        return inputs[mine], targets[mine]

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a training batch as it is learnt from; random changes come from ``generator``.

        ``batch`` is what ``training_data.__getitems__`` returned. The generator is the loader's,
        so an epoch that is started anew from its state gives the same batches.
        """
        return batch

    @abstractmethod
    def validation_examples(self, count: int) -> Batch:
        """Return ``count`` examples at equal distances over the validation split, or all of less.

        Its first ones are no sample of it: of Fashion-MNIST they are of 6 of the 10 classes.
        """

    def fixed_batch(self, batch_size: int) -> Batch:
        """Return the first ``batch_size`` training examples, for timing."""
        indices: Sequence[int] = range(batch_size)
        return self.training_data.__getitems__(indices)  # type: ignore[attr-defined]
