"""The processes that train one run together, each on its share of every batch.

Each is started by a launcher, torchrun or what calls it (accelerate launch on GPUs), and is told by
it who it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from moge_bench.config import RunConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among ``count``, numbered from 0; alone all methods return what they are given.

    ``mean``, ``first`` and the gathering ones are collective: all ranks call them, in one order.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Ranks:
        """Return what the launcher told this process by its environment."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.index == 0

    def slice_of(self, total: int, what: str) -> slice:
        """Return which of ``total`` are this rank's: as many as another's, or one more.

        ValueError, which says ``what`` they are, where there is none for some rank.
        """
        if total < self.count:
            raise ValueError(f"{total} {what} are too few for training.processes={self.count}")
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's part of the examples of a batch."""
        return items[self.slice_of(len(items), "examples of a batch")]

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean of the ranks' tensors; without gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every rank's ``tensors`` the values of the first one's, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, in their order; plain values and CPU tensors."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def gather_to_main(self, value: T) -> list[T] | None:
        """Return the value of every rank, as ``gather``, on the first one; None on the others."""
        if self.count == 1:
            return [value]
        values: list[T | None] | None = [None] * self.count if self.is_main else None
        dist.gather_object(value, values)
        return values  # type: ignore[return-value]

    def first(self, value: T) -> T:
        """Return the value of the first rank."""
        return self.gather(value)[0]


def check_processes(config: RunConfig) -> None:
    """Raise ValueError unless this process is one of ``training.processes``."""
    wanted, found = config.training.processes, Ranks.launched().count
    if wanted != found:
        raise ValueError(
            f"training.processes={wanted}, and the launcher started {found}: results depend on how "
            f"many there are. Start them with torchrun --nproc-per-node {wanted} -m moge_bench.cli "
            f"train ..., or set training.processes={found}"
        )
