"""Occupancy: by hand, and every limit against NVIDIA's cuda_occupancy.h where it can be had."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from tools.gpu_check.architectures import ARCHITECTURES, BY_NAME
from tools.gpu_check.occupancy import occupancy
from tools.gpu_check.toolchain import find_nvcc


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "limited_by"),
    [
        # 256 threads = 8 warps; 64 / 8.
        ("sm_80", 256, 32, 0, 8, "warps"),
        # 64 x 32 = 2048 registers a warp; 16384 / 2048 = 8 warps a partition, 32 in all, / 8.
        ("sm_80", 256, 64, 0, 4, "registers"),
        # 65 x 32 = 2080, rounded up to 2304: 7 a partition, 28 in all, / 8 = 3.5.
        ("sm_90", 256, 65, 0, 3, "registers"),
        # 32 KiB + 1 KiB reserved: 164 / 33 = 4.97.
        ("sm_80", 256, 32, 32768, 4, "shared memory"),
        # 228 / 33 = 6.9.
        ("sm_90", 256, 32, 32768, 6, "shared memory"),
        ("sm_100", 32, 16, 0, 32, "blocks"),
        # 64 warps x 2048 registers do not fit in 65536: the block cannot be launched.
        ("sm_100", 1024, 128, 0, 0, "registers"),
        ("sm_80", 256, 32, 164 * 1024, 0, "shared memory"),
    ],
)
def test_by_hand(architecture, threads, registers, shared, blocks, limited_by):
    found = occupancy(
        BY_NAME[architecture], threads=threads, registers=registers, shared_bytes=shared
    )
    assert (found.blocks, found.limited_by) == (blocks, limited_by)
    assert found.share == blocks * (threads // 32) / 64


def test_an_impossible_block_is_refused():
    with pytest.raises(ValueError, match="threads must be 1 to 1024 on sm_80, got 2048"):
        occupancy(BY_NAME["sm_80"], threads=2048, registers=16, shared_bytes=0)


# Reads "major shared_per_sm shared_per_block threads registers shared_bytes", answers blocks.
ORACLE = r"""
#include <climits>
#include <cstdio>
#include <cstring>
#include <cuda_occupancy.h>
int main() {
  int major, per_sm, per_block, threads, registers, shared;
  while (scanf("%d %d %d %d %d %d", &major, &per_sm, &per_block, &threads, &registers,
               &shared) == 6) {
    cudaOccDeviceProp device;
    memset(&device, 0, sizeof device);
    device.computeMajor = major;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 49152;
    device.sharedMemPerMultiprocessor = per_sm;
    device.sharedMemPerBlockOptin = per_block;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 100;
    cudaOccFuncAttributes kernel;
    memset(&kernel, 0, sizeof kernel);
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = INT_MAX;
    cudaOccDeviceState state;
    memset(&state, 0, sizeof state);
    state.carveoutConfig = SHAREDMEM_CARVEOUT_DEFAULT;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared))
      return 1;
    printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def header_folder() -> Path | None:
    nvcc = find_nvcc()
    folder = Path(nvcc).resolve().parents[1] / "include" if nvcc else None
    return folder if folder and (folder / "cuda_occupancy.h").exists() else None


@pytest.mark.skipif(
    header_folder() is None or shutil.which("g++") is None,
    reason="needs g++ and the CUDA toolkit's cuda_occupancy.h",
)
def test_agrees_with_nvidias_header(tmp_path):
    source, binary = tmp_path / "oracle.cpp", tmp_path / "oracle"
    source.write_text(ORACLE)
    subprocess.run(
        ["g++", "-w", "-I", str(header_folder()), str(source), "-o", str(binary)], check=True
    )
    cases = list(
        product(
            ARCHITECTURES,
            [32, 96, 128, 224, 256, 512, 1024],
            [0, 16, 24, 32, 33, 40, 64, 65, 72, 96, 128, 168, 255],
            [0, 1, 1024, 8192, 33000, 49152, 100000, 166912, 166913, 232448, 232449],
        )
    )
    lines = [
        f"{int(a.number) // 10} {a.shared_bytes_per_sm} {a.shared_bytes_per_block} {t} {r} {s}"
        for a, t, r, s in cases
    ]
    output = subprocess.run(
        [str(binary)], input="\n".join(lines), capture_output=True, text=True, check=True
    ).stdout
    expected = [int(line) for line in output.splitlines()]
    ours = [occupancy(a, threads=t, registers=r, shared_bytes=s).blocks for a, t, r, s in cases]
    wrong = [(line, o, e) for line, o, e in zip(lines, ours, expected, strict=True) if o != e]
    assert not wrong, wrong[:10]
