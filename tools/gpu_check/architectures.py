"""Limits of the three architectures and constants of one GPU of each, with their sources."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Gpu:
    """One product: what the roofline floor divides by.

    ``bandwidth`` is the data sheet's peak in bytes per second, which no kernel reaches; ``clock``
    is the highest in Hz. Both err towards a floor that is too low, never too high.
    """

    name: str
    num_sms: int
    bandwidth: float
    clock: float
    source: str


@dataclass(frozen=True)
class Architecture:
    """Limits of one streaming multiprocessor (SM), and the GPU that stands for the architecture.

    CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the reserved
    shared memory of a block and the allocation units are those of cuda_occupancy.h (CUDA 13.0).
    """

    name: str
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    gpu: Gpu
    max_warps_per_sm: int = 64
    max_blocks_per_sm: int = 32
    max_threads_per_block: int = 1024
    registers_per_sm: int = 65536
    max_registers_per_thread: int = 255
    register_unit: int = 256  # registers, allocated per warp
    shared_unit: int = 128  # bytes
    reserved_shared_bytes: int = 1024  # per block, for the system
    partitions: int = 4  # warp schedulers, each with its share of the registers

    @property
    def number(self) -> str:
        """The digits of nvcc's ``sm_`` and ``compute_``."""
        return self.name.removeprefix("sm_")


A100 = Gpu(
    "A100", 108, 2.039e12, 1.41e9,
    "NVIDIA A100 80GB SXM data sheet: 2039 GB/s; 19.5 TFLOP/s fp32 = 108 SM x 64 x 2 x 1.41 GHz",
)  # fmt: skip
H100 = Gpu(
    "H100", 132, 3.35e12, 1.98e9,
    "NVIDIA H100 SXM5 data sheet: 3.35 TB/s; 67 TFLOP/s fp32 = 132 SM x 128 x 2 x 1.98 GHz",
)  # fmt: skip
B200 = Gpu(
    "B200", 148, 8.0e12, 1.98e9,
    "NVIDIA DGX/HGX B200 data sheets: 8 TB/s a GPU; 75 TFLOP/s fp32 = 148 SM x 128 x 2 x 1.98 GHz",
)  # fmt: skip

ARCHITECTURES = (
    Architecture("sm_80", 164 * KIB, 163 * KIB, A100),
    Architecture("sm_90", 228 * KIB, 227 * KIB, H100),
    Architecture("sm_100", 228 * KIB, 227 * KIB, B200),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
