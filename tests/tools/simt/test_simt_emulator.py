"""The emulator itself: its collectives, atomics, indices and schedules against values by hand."""

import ctypes
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tools.simt import build, launch

SOURCES = (Path(__file__).with_name("collectives.cu"),)
every_schedule = pytest.mark.parametrize("schedule", launch.SCHEDULES)


@pytest.fixture(scope="module")
def library():
    return launch.load(build.library(SOURCES, "plain"))


def call(library, name, *buffers):
    getattr(library, f"run_{name}")(*buffers)
    return launch.launch_error(library)


@every_schedule
def test_every_collective_against_values_by_hand(library, schedule):
    library.simt_schedule(schedule)
    out = (ctypes.c_double * (64 * 19))()
    assert call(library, "every_collective", out) == ""
    for thread in range(64):
        lane, base = thread % 32, thread // 32 * 32
        expected = [
            thread ^ 5,
            thread + 3 if lane + 3 < 32 else thread,  # down: beyond the warp, the own value
            thread - 3 if lane % 8 >= 3 else thread,  # up within 8 lanes
            base + lane // 8 * 8 + 9 % 8,  # lane 9 modulo 8 of each 8
            1.5 * (thread ^ 1),
            0xAAAAAAAA,
            base == 32,  # thread 40 is of the second warp
            base == 0,
            0xF << (lane // 4 * 4),
            31 - 40,  # 7 * lane runs through every residue of 32
            base,
            32 * base + 31 * 32 // 2,
            15 * 16 // 2 if lane < 16 else -1,
            40,
            1,
            0,
            0 + 31,  # 0 ^ 1 ^ ... ^ 31, and 0 | 1 | ... | 31
            thread - 1 if lane else thread,
            thread + 2 if lane % 4 < 2 else thread,
        ]
        assert out[19 * thread : 19 * thread + 19] == expected


def test_functions_that_only_the_device_has(library):
    out, four = (ctypes.c_double * 10)(), ctypes.c_float(4.0)
    assert call(library, "every_function", out, ctypes.byref(four)) == ""
    # A number goes before a NaN; __ffs counts from 1.
    assert list(out) == [1.0, 0.5, 0x3F800000, 3.0, 3.5, -1.0, 4.0, 8, 4, 31]


def test_a_trap_ends_the_launch(library):
    message = call(library, "traps", (ctypes.c_int * 32)())
    assert "thread (3,0,0): __trap at collectives.cu:" in message


def test_every_thread_of_every_block_has_its_index(library):
    out = (ctypes.c_int * (12 * 24))()
    assert call(library, "every_index", out) == ""
    assert list(out) == [1000 * block + thread for block in range(12) for thread in range(24)]


@every_schedule
def test_atomics_add_up_in_every_order(library, schedule):
    library.simt_schedule(schedule)
    out, bits = (ctypes.c_int * 6)(), (ctypes.c_uint * 2)(0, 0xFFFF)
    total, large = ctypes.c_float(), ctypes.c_ulonglong()
    error = call(library, "every_atomic", out, bits, ctypes.byref(total), ctypes.byref(large))
    assert error == ""
    assert list(out)[:4] == [191 * 192 // 2, -2 * 192, 99, -191]
    assert out[5] == 7
    assert out[4] == 192 if schedule == 0 else 1 <= out[4] <= 192
    assert list(bits) == [0xFFFFFFFF, 0xFF00]
    assert total.value == 96.0 and large.value == 192 << 33


def test_shared_arrays_are_apart_and_begin_as_nan(library):
    out = (ctypes.c_float * 64)()
    assert call(library, "shared_arrays", out) == ""
    assert all(math.isnan(value) for value in out[:32])
    for i in range(32):
        # one[31 - i] + grid[i % 4][i / 4] + many[(i + 1) % 32]
        assert out[32 + i] == (31 - i) + (100 + i % 4 * 8 + i // 4) + (1000 + (i + 1) % 32)


def test_schedules_differ_and_a_seed_repeats_itself(library):
    def last(schedule):
        out = ctypes.c_int()
        library.simt_schedule(schedule)
        assert call(library, "last_word", ctypes.byref(out)) == ""
        return out.value

    assert last(0) == 255  # the last thread of the last block
    assert last(-1) == 0
    drawn = [last(seed) for seed in range(1, 9)]
    assert len(set(drawn)) > 4
    assert drawn == [last(seed) for seed in range(1, 9)]


def test_a_failed_launch_leaves_the_next_one_whole(library):
    out = (ctypes.c_int * 32)()
    library.simt_schedule(0)
    assert "collectives.cu" in call(library, "needs_partner", out)
    last = ctypes.c_int()
    assert call(library, "last_word", ctypes.byref(last)) == ""
    assert last.value == 255


def test_the_first_error_stays_until_it_is_asked_for(library):
    out = (ctypes.c_int * 32)()
    library.run_too_many_threads(out)
    library.run_needs_partner(out)
    assert "a block has 1 to 1024 threads" in launch.launch_error(library)
    assert launch.launch_error(library) == ""


def test_arguments_are_evaluated_once(library):
    out, count = ctypes.c_int(), ctypes.c_int()
    assert call(library, "arguments", ctypes.byref(out), ctypes.byref(count)) == ""
    assert (out.value, count.value) == (31, 1)


def test_a_library_calls_its_own_functions_beside_others_of_the_same_name(tmp_path):
    # As beside a CUDA build of torch, whose cudaGetLastError is in the process first.
    first, second = (tmp_path / name for name in ("first.cpp", "second.cpp"))
    for answer, source in enumerate((first, second), start=1):
        functions = f"int runtime() {{ return {answer}; }} int ask() {{ return runtime(); }}"
        source.write_text(f'extern "C" {{ {functions} }}')
    libraries = [str(build.link([build.compile_object(source, ["-fPIC"])], []))
                 for source in (first, second)]  # fmt: skip
    code = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)\n"
        "print(ctypes.CDLL(sys.argv[2]).ask())"
    )
    command = [sys.executable, "-c", code, *libraries]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "2\n"
