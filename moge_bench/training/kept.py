"""Small tensors that an evaluation keeps of every batch, where the allocator is not in the way."""

from __future__ import annotations

import torch


class Kept:
    """Tensors of one shape, one after the other in one buffer on their device.

    Each by itself would lie behind a batch's large tensors, whose memory the heap could then not
    join and use again: an evaluation of tiny-lm on a CPU grew by 32 MiB a batch.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._count = 0

    def add(self, value: torch.Tensor) -> None:
        """Keep a copy of ``value``."""
        if self._buffer is None:
            self._buffer = value.new_empty((64, *value.shape))
        elif self._count == len(self._buffer):
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)])
        self._buffer[self._count] = value
        self._count += 1

    def stacked(self) -> torch.Tensor:
        """Return what was kept, (n, ...) in its order; (0,) where nothing was."""
        return self._buffer[: self._count] if self._buffer is not None else torch.empty(0)
