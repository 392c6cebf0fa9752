"""Counts of instructions, sectors and bank conflicts against counts by hand."""

import numpy as np
import pytest
from ptx_snippets import module

from tools import ptx
from tools.ptx.counters import SharedTraffic, Traffic, instruction_class

PARAMETERS = ".param .u64 x, .param .u64 y"
PROLOGUE = """
.reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .pred %p<10>; .reg .b16 %h<4>;
.shared .align 16 .b8 tile[8192];
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
mov.u32 %r1, %tid.x; mov.u32 %r2, tile;
"""


def count(body, *, block=32, grid=1):
    device = ptx.Device(1 << 16)
    x, y = (device.put(np.zeros(2048, np.uint32), name) for name in ("x", "y"))
    code = module(PROLOGUE + body, PARAMETERS)
    result = ptx.run_kernel(code, "test", grid, block, [x, y], device=device, races=False)
    assert {finding.kind for finding in result.findings} <= {"uninitialised-read"}
    return result.counters


@pytest.mark.parametrize(("stride", "width", "sectors"), [
    (4, "u32", 4),  # 32 lanes x 4 bytes = 128 bytes
    (8, "u32", 8),  # every other word: twice the sectors
    (32, "u32", 32),  # a sector a lane
    (0, "u32", 1),  # all lanes the same word
    (2, "u16", 2),  # 64 bytes
    (16, "v4.u32", 16),  # 512 bytes
])  # fmt: skip
def test_sectors_of_a_load(stride, width, sectors):
    register = {"u32": "%r3", "u16": "%h1", "v4.u32": "{%r3, %r4, %r5, %r6}"}[width]
    counters = count(
        f"mul.wide.u32 %rd3, %r1, {stride}; add.s64 %rd4, %rd1, %rd3;"
        f"ld.global.{width} {register}, [%rd4]; ld.global.{width} {register}, [%rd4];"
    )
    size = {"u32": 4, "u16": 2, "v4.u32": 16}[width]
    addresses = 32 if stride else 1  # lanes that share an address ask for its bytes once
    assert counters.traffic == {
        ("x", "read"): Traffic(2, 2 * sectors, sectors, bytes=2 * addresses * size)
    }


def test_traffic_is_kept_apart_by_buffer_and_kind():
    counters = count(
        "mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;"
        "ld.global.u32 %r3, [%rd4]; st.global.u32 [%rd5], %r3; red.global.add.u32 [%rd2], 1;",
        block=64,
    )
    assert counters.traffic == {  # two warps
        ("x", "read"): Traffic(2, 8, 8, 256),
        ("y", "write"): Traffic(2, 8, 8, 256),
        ("y", "atomic"): Traffic(2, 2, 1, 8),  # one address a warp
    }


@pytest.mark.parametrize(("stride", "width", "wavefronts", "ideal"), [
    (4, "u32", 1, 1),
    (0, "u32", 1, 1),  # a broadcast
    (8, "u32", 2, 1),  # even banks only, two words each
    (128, "u32", 32, 1),  # one bank
    (132, "u32", 1, 1),  # padded by a word
    (2, "u16", 1, 1),  # two lanes a word
    (8, "v2.u32", 2, 2),  # 256 bytes need two wavefronts, without a conflict
    (16, "v4.u32", 4, 4),
    (32, "v4.u32", 8, 4),  # 8 lanes a wavefront, 4 of the 8 groups of four banks
    (64, "v2.u32", 16, 2),  # 16 lanes a wavefront meet in 2 pairs of banks: 8 turns
])  # fmt: skip
def test_bank_conflicts(stride, width, wavefronts, ideal):
    register = {
        "u32": "%r5", "u16": "%h1", "v2.u32": "{%r5, %r6}", "v4.u32": "{%r5, %r6, %r7, %r8}",
    }[width]  # fmt: skip
    counters = count(
        f"mul.lo.u32 %r3, %r1, {stride}; add.u32 %r4, %r2, %r3;ld.shared.{width} {register}, [%r4];"
    )
    assert counters.shared == {"read": SharedTraffic(1, wavefronts, ideal)}
    assert counters.shared_conflict_degree() == wavefronts / ideal


def test_atomics_on_one_word_take_turns():
    counters = count("atom.shared.add.u32 %r3, [tile], 1;")
    assert counters.shared == {"atomic": SharedTraffic(1, 32, 1)}


def test_warps_and_threads_of_a_branch():
    """Two of four warps, one of them in part, execute the addition."""
    body = "setp.lt.u32 %p1, %r1, 40; @!%p1 bra END; add.f32 %f1, %f1, %f1; END: ret;"
    counters = count(".reg .f32 %f<2>;" + body, block=128, grid=2)
    index = next(i.index for i in counters.kernel.code if i.opcode == "add.f32")
    assert (counters.warps[index], counters.threads[index]) == (2 * 2, 2 * 40)
    assert counters.by_opcode()["setp.lt.u32"] == 8
    # Each of 8 warps: ld.param and mov twice, setp, bra, ret; a branch is issued, taken or not.
    assert counters.by_class() == {"move": 32, "compare": 8, "control": 8 + 8, "float": 4}


def test_halves_of_a_register_take_no_instruction():
    """Two moves between floats and pairs; one of a register, an addition and ret are issued."""
    counters = count(
        ".reg .f32 %f<3>; .reg .b64 %d<3>; mov.b64 %d1, {%f1, %f2}; add.rn.f32x2 %d2, %d1, %d1;"
        "mov.b64 %d1, %d2; mov.b64 {%f1, %f2}, %d1;"
    )
    classes = counters.by_class()
    assert (classes["float"], counters.issued()) == (1, sum(classes.values()) - 2)


@pytest.mark.parametrize(("opcode", "expected"), [
    ("ld.global.nc.v4.f32", "load"), ("ld.param.u64", "move"), ("ld.param::entry.u64", "move"),
    ("st.shared.f32", "store"), ("red.global.add.f32", "atomic"), ("bar.sync", "barrier"),
    ("bar.warp.sync", "warp"), ("shfl.sync.bfly.b32", "warp"), ("fma.rn.f32", "float"),
    ("fma.rn.f64", "double"), ("fma.rn.f32x2", "float"), ("div.rn.f32", "special"),
    ("div.s32", "integer"), ("ex2.approx.ftz.f32", "special"), ("add.s32", "integer"),
    ("selp.f32", "move"), ("setp.lt.f32", "compare"), ("cvt.rn.f32.s32", "conversion"),
    ("ret", "control"), ("lop3.b32", "integer"),
])  # fmt: skip
def test_classes(opcode, expected):
    assert instruction_class(opcode) == expected
