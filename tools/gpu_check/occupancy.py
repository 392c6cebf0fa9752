"""Blocks that fit on one SM: the rules of NVIDIA's cuda_occupancy.h, in Python.

The tests compare every limit with that header, compiled; the report itself then needs no compiler
for this. The carve-out of shared memory is the default one: the driver gives a kernel what it
needs, up to the SM's maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.gpu_check.architectures import Architecture


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks per SM, the share of its warps that they are, and what limits them."""

    blocks: int
    share: float
    limited_by: str


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _blocks_by_registers(architecture: Architecture, warps: int, registers: int) -> int:
    per_warp = _round_up(registers * 32, architecture.register_unit)
    # A launch is checked as if its warps were spread over all partitions.
    assumed = per_warp * _round_up(warps, architecture.partitions)
    if registers > architecture.max_registers_per_thread or assumed > architecture.registers_per_sm:
        return 0
    if per_warp == 0:
        return architecture.max_blocks_per_sm
    per_partition = architecture.registers_per_sm // architecture.partitions // per_warp
    return per_partition * architecture.partitions // warps


def _blocks_by_shared(architecture: Architecture, shared_bytes: int) -> int:
    if shared_bytes > architecture.shared_bytes_per_block:
        return 0
    reserved = shared_bytes + architecture.reserved_shared_bytes
    return architecture.shared_bytes_per_sm // _round_up(reserved, architecture.shared_unit)


def occupancy(
    architecture: Architecture, *, threads: int, registers: int, shared_bytes: int
) -> Occupancy:
    """Return how many blocks of ``threads`` threads one SM holds.

    Args:
        architecture: the SM's limits.
        threads: threads a block, 1 to 1024.
        registers: 32-bit registers a thread.
        shared_bytes: static plus dynamic shared memory a block, without what the system reserves.

    Raises ValueError for a block that no SM can hold whatever its registers and shared memory are.
    """
    if not 0 < threads <= architecture.max_threads_per_block:
        raise ValueError(
            f"threads must be 1 to {architecture.max_threads_per_block} on {architecture.name}, "
            f"got {threads}"
        )
    warps = -(-threads // 32)
    limits = {
        "warps": architecture.max_warps_per_sm // warps,
        "blocks": architecture.max_blocks_per_sm,
        "registers": _blocks_by_registers(architecture, warps, registers),
        "shared memory": _blocks_by_shared(architecture, shared_bytes),
    }
    limited_by = min(limits, key=lambda name: limits[name])
    blocks = limits[limited_by]
    return Occupancy(blocks, blocks * warps / architecture.max_warps_per_sm, limited_by)
