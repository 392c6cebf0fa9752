"""The CUDA binding on the CPU: the GPU's tests, with every kernel run by csrc/simt.

Binding and launchers are compiled with g++ and register themselves for CPU tensors in a process of
their own, above the real autograd rules, fake kernels and public functions.
"""

import os
import re
import subprocess
import sys

import pytest
import simt_build
from torch.utils.cpp_extension import include_paths, library_paths

CUDA = simt_build.ROOT / "csrc/cuda"


def emulated_library():
    """Return the library of binding and launchers for the CPU, built if it is not there."""
    torch_flags = [f"-isystem{folder}" for folder in include_paths()]
    binding_flags = [
        "-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-DMOGE_EMULATED",
        "-DTORCH_TARGET_VERSION=0x020d000000000000", f"-I{simt_build.ROOT / 'csrc'}", *torch_flags,
    ]  # fmt: skip
    jobs = [(source, [*simt_build.BASE, "-O2"]) for source in simt_build.RUNTIME
            if simt_build.used(source, "plain")]  # fmt: skip
    launchers = [*sorted(CUDA.glob("*.cu")), simt_build.ROOT / "csrc/plan.cpp"]
    jobs += [(source, [*simt_build.BASE, "-O1"]) for source in launchers]
    jobs += [(source, binding_flags) for source in sorted(CUDA.glob("*.cpp"))]
    objects = [simt_build.compile_object(source, flags) for source, flags in jobs]
    target = simt_build.CACHE / f"binding-{hash_of(objects)}.so"
    if not target.is_file():
        libraries = [*(f"-L{folder}" for folder in library_paths()), "-ltorch_cpu"]
        # Symbolic: a CUDA build of torch brings a cudaGetLastError that must not take over ours.
        simt_build.make(["-shared", "-Wl,-Bsymbolic", *map(str, objects), *libraries], target)
    return target


def hash_of(objects):
    return simt_build.hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:24]


@pytest.mark.slow
def test_the_tests_of_the_gpu_pass_emulated():
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-p", "no:xdist"]
    done = subprocess.run(
        command, cwd=simt_build.ROOT, capture_output=True, text=True,
        env=os.environ | {"MOGE_EMULATED": str(emulated_library())},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 300, done.stdout[-1000:]
