"""Memory of the simulated device, where every access is checked.

A Region is a run of bytes with shadow bytes: may this byte be touched, written, has it been.
State spaces are windows of one 64-bit address range, so that generic addresses tell their space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.ptx.findings import MISALIGNED, OUT_OF_BOUNDS, READ_ONLY, PtxError
from tools.ptx.scalars import Array

SHARED_BASE = 1 << 40
LOCAL_BASE = 1 << 41
PARAM_BASE = 1 << 42
GLOBAL_BASE = 1 << 43  # and beyond: addresses of the host, which are higher on 64-bit systems
WINDOWS = {
    "shared": SHARED_BASE, "local": LOCAL_BASE, "param": PARAM_BASE, "global": GLOBAL_BASE,
    "const": GLOBAL_BASE,
}  # fmt: skip

_RED_ZONE = 256  # bytes between buffers that belong to nobody
_POISON = 0xFF  # what unwritten memory holds: NaN in every float type


class Region:
    """Bytes with their shadows; offsets are absolute in the region."""

    def __init__(self, size: int) -> None:
        size = -(-size // 32) * 32
        self.size = size
        memory = np.full(size + 256, _POISON, np.uint8)
        start = -memory.ctypes.data % 256  # offsets are as aligned as addresses
        self.data = memory[start : start + size]
        self.valid = np.zeros(size, np.uint8)
        self.written = np.zeros(size, np.uint8)
        self.writable = np.ones(size, np.uint8)

    def problem(self, offsets: Array, width: int, writes: bool) -> tuple[str, int] | None:
        """Return (kind, lane position) of the first bad access of ``width`` bytes, or None."""
        if (offsets & (width - 1)).any():
            return MISALIGNED, int(np.argmax(offsets & (width - 1) != 0))
        outside = (offsets < 0) | (offsets > self.size - width)
        if not outside.any():
            outside = ~self._all_set(self.valid, offsets, width)
        if outside.any():
            return OUT_OF_BOUNDS, int(np.argmax(outside))
        if writes and not (allowed := self._all_set(self.writable, offsets, width)).all():
            return READ_ONLY, int(np.argmin(allowed))
        return None

    def initialised(self, offsets: Array, width: int) -> Array:
        """Return for each access whether all of its bytes were written."""
        return self._all_set(self.written, offsets, width)

    def load(self, offsets: Array, dtype: np.dtype[Any]) -> Array:
        """Return one value a lane; offsets are aligned."""
        values: Array = self.data.view(dtype)[offsets // dtype.itemsize]
        return values

    def store(self, offsets: Array, values: Array) -> None:
        """Write one value a lane; of lanes that share an address the last one wins."""
        width = values.dtype.itemsize
        self.data.view(values.dtype)[offsets // width] = values
        self.written.view(f"u{width}")[offsets // width] = _ones(width)

    def _all_set(self, shadow: Array, offsets: Array, width: int) -> Array:
        unit = min(width, 8)
        words = shadow.view(f"u{unit}")
        whole = words[offsets // unit] == _ones(unit)
        for part in range(1, width // unit):
            whole &= words[offsets // unit + part] == _ones(unit)
        return whole


def _ones(width: int) -> int:
    """A shadow word of ``width`` bytes, each of them 1."""
    return int.from_bytes(b"\1" * width, "little")


@dataclass(frozen=True)
class Buffer:
    """Memory that the host allocated; pass it, or an address into it, as a kernel argument."""

    name: str
    address: int
    nbytes: int


class Device:
    """Global memory: buffers with red zones between them, in an arena of ``arena_bytes``.

    Its addresses are those of the arena on the host, so that the address of a numpy or torch view
    of a buffer can be handed to a launcher as it is.
    """

    def __init__(self, arena_bytes: int = 1 << 22) -> None:
        self.region = Region(arena_bytes)
        self.base = self.region.data.ctypes.data
        assert self.base >= GLOBAL_BASE
        self.buffers: list[Buffer] = []
        self.owner = np.zeros(self.region.size // 32, np.int32)  # buffer of each 32-byte sector
        self._top = _RED_ZONE

    def empty(self, nbytes: int, name: str, offset: int = 0) -> Buffer:
        """Allocate ``nbytes`` bytes that nobody has written; reading them is a finding.

        The address is ``offset`` above a multiple of 256.
        """
        start = self._top + offset
        end = (start + nbytes + _RED_ZONE + 255) // 256 * 256
        if end > self.region.size:
            raise PtxError(f"no room for {name} ({nbytes} bytes): enlarge arena_bytes")
        self._top = end
        self.region.valid[start : start + nbytes] = 1
        self.owner[start // 32 : self._top // 32] = len(self.buffers)
        self.buffers.append(Buffer(name, self.base + start, nbytes))
        return self.buffers[-1]

    def put(self, values: Array, name: str, *, read_only: bool = False) -> Buffer:
        """Allocate a copy of ``values`` (C order), which the kernel may write unless read_only."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        buffer = self.empty(raw.size, name)
        self.bytes_of(buffer)[:] = raw
        self.fill_in(buffer, read_only=read_only)
        return buffer

    def fill_in(self, buffer: Buffer, *, read_only: bool = False) -> None:
        """Count all bytes of ``buffer`` as written, by the host."""
        start = buffer.address - self.base
        self.region.written[start : start + buffer.nbytes] = 1
        self.region.writable[start : start + buffer.nbytes] = not read_only

    def is_written(self, buffer: Buffer) -> bool:
        """Return whether every byte of ``buffer`` was written."""
        return not self._missing(buffer)

    def describe(self, address: int) -> str:
        """Say where ``address`` is, from the start of the buffer that it is in or near to."""
        below = [buffer for buffer in self.buffers if buffer.address <= address]
        if not below or address >= self.base + self.region.size:
            return f"{address:#x}"
        buffer = below[-1]
        return f"{buffer.name} ({buffer.nbytes} bytes) + {address - buffer.address}"

    def bytes_of(self, buffer: Buffer) -> Array:
        """Return the bytes of ``buffer`` themselves; call fill_in after writing to them."""
        start = buffer.address - self.base
        return self.region.data[start : start + buffer.nbytes]

    def _missing(self, buffer: Buffer) -> int:
        start = buffer.address - self.base
        return buffer.nbytes - int(self.region.written[start : start + buffer.nbytes].sum())

    def get(self, buffer: Buffer, dtype: Any) -> Array:
        """Return what ``buffer`` holds, (elements,).

        Raises:
            PtxError: if a byte of it was never written.
        """
        if missing := self._missing(buffer):
            raise PtxError(f"{missing} of {buffer.nbytes} bytes of {buffer.name} never written")
        return self.bytes_of(buffer).copy().view(dtype)
