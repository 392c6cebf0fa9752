"""Micro-batches for ever, epoch after epoch, from a place that can be saved and found again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.data_loader import skip_first_batches
from torch.utils.data import DataLoader

from moge_bench.data.decoded import SeededBatches, in_plain_words
from moge_bench.training.task import Batch


class BatchStream:
    """The batches of a shuffled loader, ``per_step`` at a time.

    Args:
        loader: yields batches; draws the order of each epoch from ``generator``.
        generator: the loader's own.
        per_step: micro-batches of one optimiser step.
    """

    def __init__(self, loader: DataLoader, generator: torch.Generator, per_step: int) -> None:
        self._loader, self._generator, self._per_step = loader, generator, per_step
        self._epoch = generator.get_state()
        self._taken = 0
        self._batches = self._forever(skip=0)

    def next_step(self) -> list[Batch]:
        """Return the micro-batches of the next step; a step may span two epochs."""
        return [next(self._batches) for _ in range(self._per_step)]

    def state(self) -> torch.Tensor:
        """Return where the stream is: the generator before this epoch, and the batches taken."""
        taken = torch.tensor([self._taken], dtype=torch.int64).view(torch.uint8)
        return torch.cat([taken, self._epoch])

    def restore(self, state: torch.Tensor) -> None:
        """Go to where ``state`` was taken."""
        self._generator.set_state(state[8:].clone())
        self._batches = self._forever(skip=int(state[:8].clone().view(torch.int64)))

    def _forever(self, skip: int) -> Iterator[Batch]:
        while True:
            self._epoch, self._taken = self._generator.get_state(), 0
            loader = self._loader
            if skip and isinstance(loader.batch_sampler, SeededBatches):
                # A batch has a seed of its own: those taken before need not be decoded again.
                loader, self._taken = skip_first_batches(loader, skip), skip
            for batch in in_plain_words(loader):
                self._taken += 1
                if self._taken > skip:
                    yield batch
            skip = 0
