"""Data races: two accesses to one cell, at least one a write, that nothing orders.

Accesses are logged while the kernel runs and judged afterwards, so the verdict does not depend on
the schedule. What orders two accesses: a block barrier between them, for threads of one block; a
__syncwarp of the whole warp between them, for threads of one warp; nothing, for threads of two
blocks. Atomics do not race with each other. Shuffles and votes order nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx.counters import ATOMIC, READ, WRITE
from tools.ptx.findings import RACE, Finding
from tools.ptx.scalars import Array

_READ, _WRITE, _ATOMIC = 0, 1, 2
_KINDS = {READ: _READ, WRITE: _WRITE, ATOMIC: _ATOMIC}
_NAMES = {number: name for name, number in _KINDS.items()}


@dataclass
class _Entry:
    """One executed memory instruction; arrays have one element a lane."""

    instruction: int
    kind: int
    width: int
    offsets: Array
    threads: Array
    intervals: Array  # barriers that the lane has passed
    warp_intervals: Array  # barriers and warp barriers that the lane has passed


class RaceLog:
    """Accesses to one state space, shared (of the blocks that run together) or global."""

    def __init__(self, space: str, block_threads: int) -> None:
        self.space = space
        self.block_threads = block_threads
        self.entries: list[_Entry] = []

    def add(
        self, instruction: int, kind: str, width: int, offsets: Array, threads: Array,
        intervals: Array, warp_intervals: Array,
    ) -> None:  # fmt: skip
        """Log an access of ``width`` bytes a lane; the arrays are not copied."""
        self.entries.append(
            _Entry(instruction, _KINDS[kind], width, offsets, threads, intervals, warp_intervals)
        )

    def findings(self, where: list[str]) -> list[Finding]:
        """Return one finding for every pair of instructions that race, and forget the log."""
        if not any(entry.kind != _READ for entry in self.entries):
            self.entries = []
            return []
        accesses = self._contested()
        block = accesses["thread"] // self.block_threads
        warp = block << 6 | accesses["thread"] % self.block_threads // 32
        cell = accesses["cell"]
        pairs: dict[tuple[int, int], tuple[int, int]] = {}
        # Between warps of a block; between threads of a warp; between blocks.
        for keys, owner in (
            ((block, accesses["interval"], cell), warp),
            ((warp, accesses["warp_interval"], cell), accesses["thread"]),
            ((cell,), block),
        ):
            for one, other in _conflicts(keys, owner, accesses["kind"]):
                sites = sorted(
                    (int(accesses["instruction"][one]), int(accesses["instruction"][other]))
                )
                pairs.setdefault((sites[0], sites[1]), (one, other))
        return [self._finding(accesses, one, other, where) for one, other in pairs.values()]

    def _contested(self) -> dict[str, Array]:
        """The log a cell a row, without cells that nobody writes or only one thread touches."""
        unit = min(entry.width for entry in self.entries)
        rows = [self._expand(entry, unit) for entry in self.entries]
        self.entries = []
        cell, thread, kind = (np.concatenate([row[i] for row in rows]) for i in range(3))
        cells = int(cell.max()) + 1
        written = np.zeros(cells, bool)
        written[cell[kind != _READ]] = True
        one_of = np.zeros(cells, thread.dtype)
        one_of[cell] = thread
        shared = np.zeros(cells, bool)
        shared[cell[one_of[cell] != thread]] = True
        keep = (written & shared)[cell]
        names = ("cell", "thread", "kind", "instruction", "interval", "warp_interval")
        return {
            name: np.concatenate([row[i] for row in rows])[keep] for i, name in enumerate(names)
        }

    def _expand(self, entry: _Entry, unit: int) -> tuple[Array, ...]:
        parts = entry.width // unit
        cell = ((entry.offsets // unit)[:, None] + np.arange(parts)).reshape(-1)
        spread = [
            np.repeat(x, parts) for x in (entry.threads, entry.intervals, entry.warp_intervals)
        ]
        constant = [np.full(len(cell), x, np.int32) for x in (entry.kind, entry.instruction)]
        return cell, spread[0], *constant, spread[1], spread[2]

    def _finding(
        self, accesses: dict[str, Array], one: int, other: int, where: list[str]
    ) -> Finding:
        def describe(row: int) -> str:
            block, thread = divmod(int(accesses["thread"][row]), self.block_threads)
            site = where[int(accesses["instruction"][row])]
            return (
                f"{_NAMES[int(accesses['kind'][row])]} by block {block} thread {thread} at {site}"
            )

        return Finding(RACE, f"{self.space} memory, {describe(one)} and {describe(other)}")


def _conflicts(keys: tuple[Array, ...], owner: Array, kind: Array) -> list[tuple[int, int]]:
    """Pairs of rows that race: equal keys, different owners, not all reads, not all atomics.

    A group of equal keys with two owners, one of whom does not only read, holds such a pair,
    unless every access is atomic. One pair for each group.
    """
    if not len(owner):
        return []
    order = np.lexsort((owner, *keys))
    changes = np.zeros(len(order), bool)
    for key in keys:
        sorted_key = key[order]
        changes[1:] |= sorted_key[1:] != sorted_key[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes)))
    ends = np.concatenate((starts[1:], [len(order)])) - 1
    sorted_kind, sorted_owner = kind[order], owner[order]
    lowest, highest = (f.reduceat(sorted_kind, starts) for f in (np.minimum, np.maximum))
    racing = (sorted_owner[starts] != sorted_owner[ends]) & (highest > _READ) & (lowest < _ATOMIC)
    pairs = []
    for group in np.flatnonzero(racing)[:_MOST_GROUPS]:
        rows = order[starts[group] : ends[group] + 1]
        pairs.append(_pair(rows, owner, kind))
    return pairs


_MOST_GROUPS = 1000  # enough to see every pair of instructions of a kernel


def _pair(rows: Array, owner: Array, kind: Array) -> tuple[int, int]:
    """Two of ``rows`` with different owners that race."""
    for one in rows[kind[rows] != _READ]:
        rivals = rows[(owner[rows] != owner[one])]
        if kind[one] == _ATOMIC:
            rivals = rivals[kind[rivals] != _ATOMIC]
        if len(rivals):
            return int(one), int(rivals[0])
    raise AssertionError("a racing group without a racing pair")
