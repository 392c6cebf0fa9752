"""The CUDA binding on the CPU: the GPU's tests, with every kernel run by tools/simt.

Binding and launchers are compiled with g++ and register themselves for CPU tensors in a process of
their own, above the real autograd rules, fake kernels and public functions.
"""

import os
import re
import subprocess
import sys

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

from scripts.build_cuda import STABLE_ABI
from tools.simt import build

CUDA = build.ROOT / "csrc/cuda"


def emulated_library():
    """Return the library of binding and launchers for the CPU, built if it is not there."""
    torch_flags = [f"-isystem{folder}" for folder in include_paths()]
    binding_flags = [
        "-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-DMOGE_EMULATED",
        STABLE_ABI, *(f"-I{folder}" for folder in build.FOLDERS), *torch_flags,
    ]  # fmt: skip
    jobs = build.runtime_jobs("plain")
    launchers = [*sorted(CUDA.glob("*.cu")), build.ROOT / "csrc/plan.cpp"]
    jobs += [(source, [*build.BASE, "-O1"]) for source in launchers]
    jobs += [(source, binding_flags) for source in sorted(CUDA.glob("*.cpp"))]
    objects = [build.compile_object(source, flags) for source, flags in jobs]
    libraries = [*(f"-L{folder}" for folder in library_paths()), "-ltorch_cpu"]
    return build.link(objects, libraries)


@pytest.mark.slow
def test_the_tests_of_the_gpu_pass_emulated():
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-p", "no:xdist"]
    done = subprocess.run(
        command, cwd=build.ROOT, capture_output=True, text=True,
        env=os.environ | {"MOGE_EMULATED": str(emulated_library())},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 300, done.stdout[-1000:]
