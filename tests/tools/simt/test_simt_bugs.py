"""Every class of bug that tools/simt says it catches, planted once: caught by name and by line.

Each source in bugs/ also holds the kernel without the bug, which must pass: a check that always
fails is no check.
"""

import subprocess
import sys

import pytest

from tools.simt import build, launch, planted_bugs

SOURCES = (planted_bugs.FOLDER / "all.cu",)
# The words of the report, and the build whose emulator makes it.
EMULATOR = {
    "barrier_divergence": ("plain", "divergence, nobody can go on"),
    "barrier_against_shuffle": ("plain", "threads 16 to 31: __syncthreads"),
    "shuffle_exited_lane": ("plain", "names lanes that exited or do not exist"),
    "vote_partial_warp": ("plain", "names lanes that exited or do not exist: 0xffffff00"),
    "caller_outside_mask": ("plain", "the caller is not in its mask 0x0000ffff"),
    "shuffle_source_outside_mask": ("plain", "reads lane 8, which is not in its mask 0x000000ff"),
    "divergent_collectives": ("plain", "divergent warp collective"),
    "shared_memory_limit": ("plain", "more than 48 KiB of dynamic shared memory need"),
    "static_shared_limit": ("plain", "static and dynamic shared memory are 49664 bytes"),
    "static_out_of_bounds": ("trace", "0 bytes from the end of shared array 'tile' of 260 bytes"),
    "dynamic_out_of_bounds": ("trace", "0 bytes from the end of shared array 'values' of 256"),
    "global_out_of_bounds": ("trace", "0 bytes from the end of buffer 'in' of 256 bytes"),
    "write_to_input": ("trace", "write to input buffer 'in' at byte"),
    "unwritten_shared": ("trace", "read of unwritten shared array 'values' at byte"),
    "unwritten_output": ("trace", "read of unwritten buffer 'out' at byte"),
    "race_without_barrier": ("trace", "race on shared array 'values' at byte"),
    "race_on_reuse": ("trace", "race on shared array 'values' at byte"),
    "race_within_warp": ("trace", "race on shared array 'values' at byte"),
    "race_between_blocks": ("trace", "nothing orders the blocks of a launch"),
}
# What a sanitizer says, in the order of threads only.
SANITIZERS = {
    "static_out_of_bounds": ("asan", "use-after-poison"),
    "dynamic_out_of_bounds": ("asan", "use-after-poison"),
    "misaligned_vector": ("asan", "misaligned address"),
    "undefined_shift": ("asan", "shift exponent 32 is too large"),
    "race_without_barrier": ("tsan", "data race"),
    "race_on_reuse": ("tsan", "data race"),
    "race_within_warp": ("tsan", "data race"),
    "race_between_blocks": ("tsan", "data race"),
}


@pytest.fixture(scope="session")
def libraries():
    """Return a function from the name of a build to its library, loaded once."""
    return lambda mode: launch.load(build.library(SOURCES, mode))


def test_every_planted_bug_is_expected_somewhere():
    planted = {path.stem for path in planted_bugs.FOLDER.glob("*.cu")} - {"all"}
    assert planted == EMULATOR.keys() | SANITIZERS.keys()


@pytest.mark.parametrize("schedule", launch.SCHEDULES)
@pytest.mark.parametrize("name", EMULATOR)
def test_the_emulator_names_array_and_lines(libraries, name, schedule):
    mode, words = EMULATOR[name]
    library = libraries(mode)
    library.simt_schedule(schedule)
    message = planted_bugs.run(library, name, fixed=False)
    assert words in message and name in message
    for line in planted_bugs.named_lines(name):
        assert line in message


@pytest.mark.parametrize("mode", ["plain", "trace"])
@pytest.mark.parametrize("schedule", launch.SCHEDULES)
def test_the_emulator_passes_the_kernels_without_the_bugs(libraries, mode, schedule):
    library = libraries(mode)
    library.simt_schedule(schedule)
    for name in EMULATOR:
        assert planted_bugs.run(library, name, fixed=True) == "", name


def run_sanitized(mode, name, *options):
    library = build.library(SOURCES, mode)
    return subprocess.run(
        [sys.executable, "-m", "tools.simt.planted_bugs", str(library), name, *options],
        env=build.environment(mode), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SANITIZERS)
def test_a_sanitizer_names_the_lines(name):
    mode, words = SANITIZERS[name]
    done = run_sanitized(mode, name)
    assert done.returncode != 0
    assert words in done.stderr
    for line in planted_bugs.named_lines(name):
        assert line in done.stderr


@pytest.mark.parametrize("name", SANITIZERS)
def test_a_sanitizer_passes_the_kernel_without_the_bug(name):
    done = run_sanitized(SANITIZERS[name][0], name, "--fixed")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
