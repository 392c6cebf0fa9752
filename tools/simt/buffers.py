"""Memory for the arguments of a launch on the emulator.

Every tensor is copied to a place with guard bytes around it, and the emulator is told its bounds
and whether the kernel may write it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from tools.simt import launch

GUARD, CANARY = 256, 0xA5


class Buffers:
    """The memory of one launch: guarded, registered with the emulator, checked afterwards."""

    def __init__(self, library: ctypes.CDLL, shift: int = 0) -> None:
        """``shift``: elements by which inputs and outputs are off their 256-byte alignment.

        Not row_stats, whose pairs are moved at once.
        """
        self.library, self.shift = library, shift
        self.kept: list[tuple[str, torch.Tensor, int, int]] = []
        library.simt_forget()

    def _place(self, name: str, num_bytes: int, access: int, shift: int) -> torch.Tensor:
        offset = 0 if name == "row_stats" else shift
        memory = torch.full((2 * GUARD + 256 + num_bytes + offset,), CANARY, dtype=torch.uint8)
        start = GUARD + -(memory.data_ptr() + GUARD) % 256 + offset
        inside = memory[start : start + num_bytes]
        inside.fill_(0xFF)  # NaN or -1
        self.library.simt_register(name.encode(), inside.data_ptr(), num_bytes, access)
        self.kept.append((name, memory, start, start + num_bytes))
        return inside

    def read(self, name: str, tensor: torch.Tensor | None) -> int | None:
        """Return the address of a copy of ``tensor`` that the kernel may only read."""
        if tensor is None:
            return None
        flat = tensor.contiguous()
        num_bytes = flat.numel() * flat.element_size()
        place = self._place(name, num_bytes, launch.READ, self.shift * flat.element_size())
        if num_bytes:
            place.view(flat.dtype).copy_(flat.reshape(-1))
        return place.data_ptr()

    def write(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor that the kernel must write before it may read it."""
        size = torch.Size(shape).numel() * dtype.itemsize
        place = self._place(name, size, launch.WRITE_FIRST, self.shift * dtype.itemsize)
        return place.view(dtype).view(tuple(shape))

    def workspace(self, num_bytes: int) -> int:
        """Return the address of a workspace; what it holds is of no interest."""
        return self._place("workspace", num_bytes, launch.WRITE_FIRST, 0).data_ptr()

    def assert_guards_whole(self) -> None:
        """Raise AssertionError where the kernel wrote beside a buffer."""
        for name, memory, start, stop in self.kept:
            for guard in (memory[:start], memory[stop:]):
                assert (guard == CANARY).all(), f"written outside of {name}"
