"""Planted bugs, each caught by its name at its line; and what is right is not called a bug."""

import numpy as np
import pytest
from ptx_snippets import module

from tools import ptx
from tools.ptx import findings

PARAMETERS = ".param .u64 buffer"
PROLOGUE = """
.reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .pred %p<10>;
.shared .align 4 .b8 tile[256];
ld.param.u64 %rd1, [buffer];
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3;
mov.u32 %r2, tile; shl.b32 %r3, %r1, 2; add.u32 %r4, %r2, %r3;      // this thread's word
xor.b32 %r5, %r1, 1; shl.b32 %r5, %r5, 2; add.u32 %r5, %r2, %r5;    // its neighbour's
xor.b32 %r6, %r1, 32; shl.b32 %r6, %r6, 2; add.u32 %r6, %r2, %r6;   // that in the other warp
setp.eq.u32 %p1, %r1, 0;
setp.lt.u32 %p2, %r1, 32;
"""


def find(body, *, block=64, grid=1, words=64, written=True, **settings):
    """Run ``body``; return the findings as (kind, message) pairs."""
    device = ptx.Device(1 << 16)
    zeros = np.zeros(words, np.uint32)
    buffer = device.put(zeros, "buffer") if written else device.empty(zeros.nbytes, "buffer")
    code = module(PROLOGUE + body, PARAMETERS)
    result = ptx.run_kernel(code, "test", grid, block, [buffer], device=device, **settings)
    return [(finding.kind, finding.message) for finding in result.findings]


WRITE = "st.shared.u32 [%r4], %r1;"
RACES = [
    ("missing barrier", f"{WRITE} ld.shared.u32 %r7, [%r6];", "ld.shared"),
    ("missing barrier within a warp", f"{WRITE} ld.shared.u32 %r7, [%r5];", "ld.shared"),
    # A warp barrier does not order two warps.
    ("warp barrier between warps",
     f"{WRITE} bar.warp.sync -1; ld.shared.u32 %r7, [%r6];", "ld.shared"),
    ("barrier of half a warp",
     f"""{WRITE} and.b32 %r8, %r1, 31; setp.lt.u32 %p3, %r8, 16; @%p3 bra LOW;
     bar.warp.sync 0xFFFF0000; bra MEET; LOW: bar.warp.sync 0xFFFF;
     MEET: ld.shared.u32 %r7, [%r5];""", "ld.shared"),
    # The tile is overwritten while slower threads may still read it.
    ("missing second barrier", f"{WRITE} bar.sync 0; ld.shared.u32 %r7, [%r6]; {WRITE}",
     "st.shared"),
    ("two writers in one instruction", "st.shared.u32 [tile], %r1;", "st.shared"),
    ("everybody reads what one thread overwrites",
     "@%p1 st.shared.u32 [tile], %r1; bar.sync 0; ld.shared.u32 %r7, [tile];"
     " @%p1 st.shared.u32 [tile], %r1;", "st.shared"),
    ("atomic against a plain read", "@%p1 st.shared.u32 [tile], 0; bar.sync 0;"
     " atom.shared.add.u32 %r7, [tile], 1; ld.shared.u32 %r8, [tile];", "ld.shared"),
    ("parts of one word", "shl.b32 %r8, %r1, 1; add.u32 %r8, %r2, %r8; cvt.u16.u32 %h1, %r1;"
     " st.shared.u16 [%r8], %h1; setp.lt.u32 %p3, %r1, 32; @%p3 ld.shared.u32 %r7, [%r4];",
     "ld.shared"),
    ("global memory without a barrier", "add.s64 %rd5, %rd1, 0; st.global.u32 [%rd4], %r1;"
     " ld.global.u32 %r7, [%rd5];", "ld.global"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "site"), [case[1:] for case in RACES], ids=[r[0] for r in RACES])
def test_races_are_found(body, site):
    found = find(".reg .b16 %h<4>;" + body)
    kinds = {kind for kind, _ in found}
    assert kinds == {findings.RACE}
    assert any(site in message and "thread" in message for _, message in found)


RIGHT = {
    "barrier": f"{WRITE} bar.sync 0; ld.shared.u32 %r7, [%r6];",
    "warp barrier": f"{WRITE} bar.warp.sync -1; ld.shared.u32 %r7, [%r5];",
    "own word": f"{WRITE} ld.shared.u32 %r7, [%r4]; {WRITE}",
    "all barriers of a loop": f"""mov.u32 %r8, 0; L: {WRITE} bar.sync 0; ld.shared.u32 %r7, [%r6];
        bar.sync 0; add.u32 %r8, %r8, 1; setp.lt.u32 %p3, %r8, 3; @%p3 bra L;""",
    "atomics only": "@%p1 st.shared.u32 [tile], %r9; bar.sync 0;"
    " atom.shared.add.u32 %r7, [tile], 1; atom.shared.add.u32 %r7, [tile], 1;",
    "one reader left out": "@%p1 st.shared.u32 [tile], %r9; bar.sync 0; @%p1 ld.shared.u32 %r7,"
    " [tile]; @%p1 st.shared.u32 [tile], %r9;",
    "neighbouring halves of a word": "shl.b32 %r8, %r1, 1; add.u32 %r8, %r2, %r8;"
    " cvt.u16.u32 %h1, %r1; st.shared.u16 [%r8], %h1; ld.shared.u16 %h2, [%r8];",
}


@pytest.mark.parametrize("body", RIGHT.values(), ids=RIGHT.keys())
def test_ordered_accesses_are_no_race(body):
    assert find(".reg .b16 %h<4>;" + body) == []


def test_blocks_race_whatever_their_barriers():
    body = "@%p1 st.global.u32 [%rd1], %r1; bar.sync 0;"
    ((kind, message),) = find(body, grid=2)
    assert kind == findings.RACE
    assert "block 0 thread 0" in message and "block 1 thread 0" in message
    assert find(body.replace("st.global.u32", "red.global.add.u32"), grid=2) == []
    assert find(body, grid=2, races=False) == []
    # The blocks of different chunks meet too: 40 blocks of 1024 threads do not run together.
    assert len(find(body, grid=40, block=1024, words=1024)) == 1


FAULTS = [
    ("beyond a buffer", "ld.global.u32 %r7, [%rd4+4];", findings.OUT_OF_BOUNDS,
     "buffer (256 bytes) + 256 by block 0 thread 63"),
    ("before a buffer", "ld.global.u32 %r7, [%rd1+-4];", findings.OUT_OF_BOUNDS, "thread 0"),
    ("a null pointer", "mov.u64 %rd5, 0; st.u32 [%rd5], %r1;", findings.OUT_OF_BOUNDS, "0x0"),
    ("half beyond", "ld.global.v2.u32 {%r7, %r8}, [%rd1+256];", findings.OUT_OF_BOUNDS, "8 bytes"),
    ("beyond shared memory", "st.shared.u32 [tile+256], %r1;", findings.OUT_OF_BOUNDS, "shared"),
    ("below shared memory", "st.shared.u32 [%r4+-4], %r1;", findings.OUT_OF_BOUNDS, "thread 0"),
    ("misaligned", "ld.global.u32 %r7, [%rd4+2];", findings.MISALIGNED, "thread 0"),
    ("misaligned vector", "ld.global.v2.u32 {%r7, %r8}, [%rd1+4];", findings.MISALIGNED, "8 bytes"),
    ("unwritten shared memory", "ld.shared.u32 %r7, [%r4];", findings.UNINITIALISED, "shared"),
    ("shared memory written in part", "@%p2 st.shared.u32 [%r4], %r1; bar.sync 0;"
     " ld.shared.u32 %r7, [%r4];", findings.UNINITIALISED, "thread 32"),
    ("unwritten local memory", ".local .align 4 .b8 frame[8]; ld.local.u32 %r7, [frame];",
     findings.UNINITIALISED, "local"),
    ("barrier in a branch", "@!%p2 bra END; bar.sync 0; END: ret;", findings.BARRIER_DIVERGENCE,
     "32 threads at `bar.sync 0` (PTX line 17), 32 threads have exited"),
    ("two barriers", "@%p2 bra LOW; bar.sync 0; ret; LOW: bar.sync 0; ret;",
     findings.BARRIER_DIVERGENCE, "32 threads at"),
    ("guarded barrier", "@%p2 bar.sync 0;", findings.BARRIER_DIVERGENCE, "have exited"),
    ("shuffle with exited lanes", "@%p1 ret; shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1;",
     findings.ABSENT_LANE, "names a lane that has exited"),
    ("shuffle by a lane outside its mask", "shfl.sync.bfly.b32 %r7, %r1, 1, 31, 0xFFFF;",
     findings.ABSENT_LANE, "is not in its own mask"),
    ("shuffle from outside its mask", "and.b32 %r8, %r1, 31; setp.lt.u32 %p3, %r8, 16;"
     " @%p3 shfl.sync.down.b32 %r7, %r1, 1, 31, 0xFFFF;", findings.ABSENT_LANE,
     "reads a lane outside its mask"),
    ("masks that disagree", "mov.u32 %r8, -1; @%p1 mov.u32 %r8, 3;"
     " redux.sync.add.u32 %r7, %r1, %r8;", findings.ABSENT_LANE, "disagrees"),
    ("shuffle before others exit", "@%p1 bra LATER; shfl.sync.bfly.b32 %r7, %r1, 1, 31, -1; ret;"
     " LATER: ret;", findings.ABSENT_LANE, "names a lane that has exited"),
    ("lanes that never come", "@%p1 bra OTHER; redux.sync.add.u32 %r7, %r1, -1; ret;"
     " OTHER: bar.sync 0; ret;", findings.DEADLOCK, "redux"),
    ("division by zero", "div.u32 %r7, %r1, %r9;", findings.DIVISION_BY_ZERO, "div.u32"),
    ("trap", "@%p1 trap;", findings.TRAP, "thread 0"),
    ("index beyond a branch table", "T: .branchtargets A, B; brx.idx %r1, T; A: ret; B: ret;",
     findings.TRAP, "branch table"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "says"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS]
)
def test_faults_are_found(body, kind, says):
    ((found, message),) = find(body, races=False)
    assert found == kind
    assert says in message and "PTX line" in message


def test_unwritten_global_memory_is_a_finding_and_the_run_goes_on():
    device = ptx.Device(1 << 16)
    buffer = device.empty(256, "buffer")
    body = "ld.global.u32 %r7, [%rd4]; bar.sync 0; st.global.u32 [%rd4], %r1;"
    code = module(PROLOGUE + body, PARAMETERS)
    result = ptx.run_kernel(code, "test", 1, 64, [buffer], device=device)
    assert [finding.kind for finding in result.findings] == [findings.UNINITIALISED]
    np.testing.assert_array_equal(device.get(buffer, np.uint32), np.arange(64))
    with pytest.raises(ptx.PtxError, match="uninitialised-read: global memory by block 0 thread 0"):
        result.check()


@pytest.mark.parametrize("write", ["st.global.u32 [%rd4], %r1;", "red.global.add.u32 [%rd1], 1;"])
def test_a_write_to_an_input_is_a_finding(write):
    device = ptx.Device(1 << 16)
    buffer = device.put(np.zeros(64, np.uint32), "buffer", read_only=True)
    code = module(f"{PROLOGUE} ld.global.u32 %r7, [%rd4]; {write}", PARAMETERS)
    (finding,) = ptx.run_kernel(code, "test", 1, 64, [buffer], device=device, races=False).findings
    assert finding.kind == findings.READ_ONLY and "buffer (256 bytes) + 0" in finding.message


@pytest.mark.parametrize(("inlined", "words"), [
    ("", "kernel.cuh:42 `ld.global"),
    (", function_name $L__info_string5, inlined_at 2 7 5", "kernel.cuh:42 inlined at a.cu:7 `ld"),
])  # fmt: skip
def test_a_finding_names_the_source_line(inlined, words):
    text = '.file 1 "csrc/kernel.cuh"\n.file 2 "a.cu"\n'
    code = module(
        f"{PROLOGUE}\n.loc 1 42 3{inlined}\nld.global.u32 %r7, [%rd4+4];", PARAMETERS, text
    )
    device = ptx.Device(1 << 16)
    buffer = device.put(np.zeros(4, np.uint32), "buffer")
    (finding,) = ptx.run_kernel(code, "test", 1, 4, [buffer], device=device).findings
    assert words in finding.message
