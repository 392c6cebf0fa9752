"""The state of the blocks that run together: registers, memory windows, and who stands where.

A register is an array with one element a CUDA thread, here called a lane of the chunk.
"""

from __future__ import annotations

import numpy as np

from tools.ptx.counters import READ, WRITE, Counters
from tools.ptx.decode import Lanes
from tools.ptx.findings import ABSENT_LANE, UNINITIALISED, Finding, KernelFault, PtxError
from tools.ptx.layout import Layout
from tools.ptx.memory import (
    GLOBAL_BASE,
    LOCAL_BASE,
    PARAM_BASE,
    SHARED_BASE,
    Device,
    Region,
)
from tools.ptx.program import Instruction
from tools.ptx.races import RaceLog
from tools.ptx.scalars import DTYPES, Array, unsigned

_OUTSIDE = -4096  # an offset that no region has, aligned for every access
_WINDOWS = ((GLOBAL_BASE, "global"), (PARAM_BASE, "param"), (LOCAL_BASE, "local"),
            (SHARED_BASE, "shared"), (0, "global"))  # fmt: skip


class ChunkState:
    """Blocks ``first`` to ``first + blocks`` of a launch; see ``layout.Layout`` for the launch."""

    def __init__(
        self, layout: Layout, first: int, blocks: int, device: Device, counters: Counters,
        findings: list[Finding], global_log: RaceLog | None,
    ) -> None:  # fmt: skip
        self.layout, self.device = layout, device
        self.counters, self.findings, self.global_log = counters, findings, global_log
        threads = layout.threads
        self.lanes = blocks * threads
        self.everyone = np.arange(self.lanes)
        self.block_in_chunk = self.everyone // threads
        in_block = self.everyone % threads
        self.thread = (self.everyone + first * threads).astype(np.int32)  # in the whole grid
        warps_a_block = -(-threads // 32)
        self.warps = blocks * warps_a_block
        self.warp_in_chunk = self.block_in_chunk * warps_a_block + in_block // 32
        self.lane_in_warp = in_block % 32
        self.special = layout.special_registers(in_block, self.block_in_chunk + first)
        self.symbols = layout.symbols
        self.registers = [
            np.zeros(self.lanes, unsigned(DTYPES[kind])) for kind in layout.kernel.register_types
        ]
        self.pc = np.zeros(self.lanes, np.int64)
        self.waiting = np.zeros(self.lanes, bool)  # at a barrier or a collective
        self.interval = np.zeros(self.lanes, np.int32)  # barriers passed
        self.warp_interval = np.zeros(self.lanes, np.int32)  # barriers and warp barriers passed
        self.shared = Region(layout.shared_stride * blocks)
        self.shared.valid.reshape(blocks, -1)[:, : layout.shared_stride] = layout.shared_valid
        self.local = Region(max(32, layout.local_stride * self.lanes))
        self.local.valid[:] = 1
        self.shared_log = RaceLog("shared", threads) if global_log else None
        self._noted: set[tuple[str, int]] = set()

    def numbers(self, lanes: Lanes) -> Array:
        """Return the lane numbers that ``lanes`` selects."""
        return self.everyone if isinstance(lanes, slice) else lanes

    def describe(self, lane: int) -> str:
        """Name a lane to a reader."""
        block, thread = divmod(int(self.thread[lane]), self.layout.threads)
        return f"block {block} thread {thread}"

    def note(self, kind: str, instruction: Instruction, message: str) -> None:
        """Record a finding, once for each instruction."""
        if (kind, instruction.index) not in self._noted:
            self._noted.add((kind, instruction.index))
            self.findings.append(Finding(kind, f"{message}: {instruction.where}"))

    # Memory.

    def touch(
        self, instruction: Instruction, space: str, kind: str, addresses: Array, lanes: Lanes,
        width: int,
    ) -> tuple[Region, Array]:  # fmt: skip
        """Check, log and count an access of ``width`` bytes a lane; return where it goes.

        Raises:
            KernelFault: if a lane is out of bounds or misaligned.
        """
        if space == "param" and len(addresses) == 1:  # the same for all lanes
            numbers = self.everyone[:1]
        else:
            numbers = self.numbers(lanes)
            addresses = np.broadcast_to(addresses, numbers.shape)
        if space == "generic":
            space, addresses = self._resolve(instruction, addresses)
        region, offsets = self._place(space, addresses, numbers, width)
        if problem := region.problem(offsets, width, kind != READ):
            fault, which = problem
            address = int(addresses[which])
            place = self.device.describe(address) if space == "global" else f"{address:#x}"
            message = (
                f"{kind} of {width} bytes at {space} address {place} by "
                f"{self.describe(numbers[which])}: {instruction.where}"
            )
            raise KernelFault(fault, message)
        if kind != WRITE:
            known = region.initialised(offsets, width)
            if not known.all():
                who = self.describe(numbers[np.argmin(known)])
                self.note(UNINITIALISED, instruction, f"{space} memory by {who}")
        if space in ("global", "shared"):
            self._account(instruction, space, kind, offsets, lanes, width)
        return region, offsets

    def _resolve(self, instruction: Instruction, addresses: Array) -> tuple[str, Array]:
        """The state space of generic addresses, and their addresses in it."""
        for base, space in _WINDOWS:
            inside = addresses >= base
            if inside.all():
                return space, addresses - (base if space != "global" else 0)
            if inside.any():
                break
        raise PtxError(f"generic addresses of several spaces at once in {instruction.where}")

    def _place(
        self, space: str, addresses: Array, numbers: Array, width: int
    ) -> tuple[Region, Array]:
        """The region of ``space`` and the offsets in it."""
        if space in ("global", "const"):
            return self.device.region, addresses - self.device.base
        if space == "param":
            return self.layout.parameters, addresses
        if space == "shared":
            region, stride, owner = self.shared, self.layout.shared_stride, self.block_in_chunk
        else:
            region, stride, owner = self.local, self.layout.local_stride, self.everyone
        inside = (addresses >= 0) & (addresses <= stride - width)
        return region, np.where(inside, addresses + owner[numbers] * stride, _OUTSIDE)

    def _account(
        self, instruction: Instruction, space: str, kind: str, offsets: Array, lanes: Lanes,
        width: int,
    ) -> None:  # fmt: skip
        log = self.shared_log if space == "shared" else self.global_log
        if log:
            log.add(
                instruction.index, kind, width, offsets, self.thread[lanes], self.interval[lanes],
                self.warp_interval[lanes],
            )  # fmt: skip
        warps = self.warp_in_chunk[lanes]
        if space == "shared":
            self.counters.count_shared(kind, offsets, warps, self.lane_in_warp[lanes], width)
        else:
            self.counters.count_global(kind, offsets, warps, width, self.device.owner)

    # Who is where.

    def mask_of(self, lanes: Lanes) -> Array:
        """Return for every warp of the chunk the mask of its lanes that are in ``lanes``."""
        masks = np.zeros(self.warps, np.uint32)
        bits = np.uint32(1) << self.lane_in_warp[lanes].astype(np.uint32)
        np.bitwise_or.at(masks, self.warp_in_chunk[lanes], bits)
        return masks

    def gather(self, instruction: Instruction, lanes: Lanes, masks: Array) -> tuple[Lanes, Array]:
        """Return the lanes whose whole mask is among ``lanes``, and their masks.

        Raises:
            KernelFault: if a mask can never be complete, or lanes disagree about it.
        """
        whole_warps = self.layout.threads % 32 == 0
        if isinstance(lanes, slice) and whole_warps and (masks == 0xFFFFFFFF).all():
            return lanes, masks
        numbers, warps = self.numbers(lanes), self.warp_in_chunk[lanes]
        own = masks >> self.lane_in_warp[lanes].astype(np.uint32) & np.uint32(1)
        self._demand(instruction, own == 1, numbers, "is not in its own mask")
        alive = self.mask_of(np.flatnonzero(self.pc < self.layout.end))[warps]
        self._demand(
            instruction, masks & ~alive == 0, numbers,
            "names a lane that has exited or does not exist",
        )  # fmt: skip
        ready = masks & ~self.mask_of(lanes)[warps] == 0
        if ready.all():
            chosen = lanes
        else:
            numbers = chosen = numbers[ready]
            masks, warps = masks[ready], warps[ready]
        group = warps * 32 + np.bitwise_count((masks & -masks) - np.uint32(1))
        agreeing = np.bincount(group, minlength=self.warps * 32)[group] == np.bitwise_count(masks)
        one_of = np.zeros(self.warps * 32, np.uint32)
        one_of[group] = masks
        self._demand(
            instruction, agreeing & (one_of[group] == masks), numbers,
            "disagrees with another lane about the mask",
        )  # fmt: skip
        return chosen, masks

    def _demand(self, instruction: Instruction, good: Array, numbers: Array, what: str) -> None:
        if not good.all():
            who = self.describe(numbers[np.argmin(good)])
            raise KernelFault(ABSENT_LANE, f"{who} {what}: {instruction.where}")

    def pass_warp_barrier(self, lanes: Lanes) -> None:
        """Order memory among the lanes of each warp that is here as a whole.

        A barrier of part of a warp is taken to order nothing: that may report a race too many,
        never one too few.
        """
        whole = self.mask_of(lanes) == self.mask_of(np.flatnonzero(self.pc < self.layout.end))
        self.warp_interval = self.warp_interval + whole[self.warp_in_chunk].astype(np.int32)

    def pass_block_barrier(self, lanes: Array) -> None:
        """Order memory among the threads of each block in ``lanes``, which holds whole blocks."""
        step = np.zeros(self.lanes, np.int32)
        step[lanes] = 1
        self.interval, self.warp_interval = self.interval + step, self.warp_interval + step

    def finish(self) -> None:
        """Judge the shared accesses, once all blocks have run."""
        if self.shared_log:
            where = [instruction.where for instruction in self.layout.kernel.code]
            self.findings += self.shared_log.findings(where)
