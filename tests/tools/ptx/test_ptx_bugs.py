"""The planted bugs of tools/simt once more, in the PTX that nvcc makes of them: named, with line.

Each kernel is also run without its bug, and then nothing may be found.
"""

import ctypes

import numpy as np
import pytest
from ptx_kernels import CACHE, CSRC, SM_80, ArgumentSizes

from tools import ptx
from tools.gpu_check.launches import LauncherLibrary
from tools.gpu_check.toolchain import Toolchain, find_nvcc
from tools.ptx import findings
from tools.simt import planted_bugs

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed: no PTX to run")
KINDS = {
    "barrier_divergence": findings.BARRIER_DIVERGENCE,
    "barrier_against_shuffle": findings.DEADLOCK,
    "divergent_collectives": findings.DEADLOCK,
    "shuffle_exited_lane": findings.ABSENT_LANE,
    "vote_partial_warp": findings.ABSENT_LANE,
    "caller_outside_mask": findings.ABSENT_LANE,
    "shuffle_source_outside_mask": findings.ABSENT_LANE,
    "static_out_of_bounds": findings.OUT_OF_BOUNDS,
    "dynamic_out_of_bounds": findings.OUT_OF_BOUNDS,
    "global_out_of_bounds": findings.OUT_OF_BOUNDS,
    "write_to_input": findings.READ_ONLY,
    "unwritten_shared": findings.UNINITIALISED,
    "unwritten_output": findings.UNINITIALISED,
    "race_without_barrier": findings.RACE,
    "race_on_reuse": findings.RACE,
    "race_within_warp": findings.RACE,
    "race_between_blocks": findings.RACE,
}
# Not in the PTX: an attribute that the host must set, needed in two ways; a shift that is undefined
# in C++ only; and a vector of which nvcc loads only the words that are used.
ELSEWHERE = {
    "shared_memory_limit", "static_shared_limit", "undefined_shift", "misaligned_vector",
}  # fmt: skip


@pytest.fixture(scope="module")
def find():
    """Return a function from a bug's name to what the interpreter finds."""
    sources, toolchain = [planted_bugs.FOLDER / "all.cu"], Toolchain(find_nvcc() or "", "", CACHE)
    sizes = ArgumentSizes([toolchain.ptx(sources[0], CSRC, SM_80).read_text()])
    launchers = LauncherLibrary(toolchain.launcher_library(sources, CSRC), sizes)

    def find(name, fixed):
        device = ptx.Device(1 << 16)
        ones = np.ones(64, np.float32)
        unwritten = name == "unwritten_output"
        out = device.empty(ones.nbytes, "out") if unwritten else device.put(ones, "out")
        values = device.put(ones, "in", read_only=True)

        def call():
            run = getattr(launchers.functions, f"run_{name}")
            run(int(fixed), ctypes.c_void_p(out.address), ctypes.c_void_p(values.address))
            return 0

        (launch,) = launchers.record(call)
        return ptx.run_kernel(
            sizes.module(launch.kernel), launch.kernel, launch.grid, launch.block,
            launch.arguments, device=device, shared_bytes=launch.shared_bytes,
        ).findings  # fmt: skip

    return find


def test_every_planted_bug_is_expected_somewhere():
    planted = {path.stem for path in planted_bugs.FOLDER.glob("*.cu")} - {"all"}
    assert planted == KINDS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", KINDS)
def test_planted_bugs_are_found_in_the_ptx(find, name):
    found = find(name, fixed=False)
    assert {finding.kind for finding in found} == {KINDS[name]}
    messages = " ".join(finding.message for finding in found)
    for line in planted_bugs.named_lines(name):
        assert line in messages


@pytest.mark.parametrize("name", KINDS)
def test_the_kernels_without_the_bugs_pass(find, name):
    assert find(name, fixed=True) == []
