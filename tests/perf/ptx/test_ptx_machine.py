"""Memory, atomics, warp collectives and control flow, each on a snippet with results by hand."""

import numpy as np
import pytest
from ptx_snippets import module

from moge_bench.perf import ptx
from moge_bench.perf.ptx.decode import supported_opcodes

PARAMETERS = ".param .u64 input, .param .u64 output"
PROLOGUE = """
.reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<10>; .reg .pred %p<10>; .reg .b16 %h<10>;
ld.param.u64 %rd1, [input]; ld.param.u64 %rd2, [output];
cvta.to.global.u64 %rd1, %rd1; cvta.to.global.u64 %rd2, %rd2;
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;
add.s64 %rd4, %rd1, %rd3;  // this thread's word of the input
add.s64 %rd5, %rd2, %rd3;  // and of the output
"""


def run(body, values, dtype=np.uint32, *, block=32, words=None, declarations="", **settings):
    """Run ``body`` after PROLOGUE for one block; return the output array."""
    device = ptx.Device(1 << 16)
    source = device.put(np.asarray(values), "input")
    target = device.empty(4 * (words or block), "output")
    code = module(PROLOGUE + body, PARAMETERS, declarations)
    result = ptx.run_kernel(code, "test", 1, block, [source, target], device=device, **settings)
    result.check()
    return device.get(target, dtype)


LANES = np.arange(32, dtype=np.uint32)
COLLECTIVES = [
    # Every lane holds 100 + its number and reads one lane, or keeps its own value.
    ("shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;", 100 + (LANES ^ 1)),
    ("shfl.sync.down.b32 %r3, %r2, 4, 31, -1;", 100 + np.where(LANES < 28, LANES + 4, LANES)),
    ("shfl.sync.up.b32 %r3, %r2, 4, 0, -1;", 100 + np.where(LANES >= 4, LANES - 4, LANES)),
    ("shfl.sync.idx.b32 %r3, %r2, 7, 31, -1;", np.full(32, 107)),
    # Segments of 8 lanes: the clamp word is (32 - 8) << 8 | 7.
    ("shfl.sync.idx.b32 %r3, %r2, 1, 0x1807, -1;", 100 + (LANES & 24) + 1),
    # The predicate says that the source lane was inside.
    ("shfl.sync.down.b32 %r3|%p1, %r2, 31, 31, -1; selp.b32 %r3, 1, 0, %p1;", LANES == 0),
    ("setp.lt.u32 %p1, %r2, 103; vote.sync.ballot.b32 %r3, %p1, -1;", np.full(32, 0b111)),
    ("setp.lt.u32 %p1, %r2, 103; vote.sync.any.pred %p2, %p1, -1; selp.b32 %r3, 1, 0, %p2;",
     np.ones(32)),
    ("setp.lt.u32 %p1, %r2, 103; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r3, 1, 0, %p2;",
     np.zeros(32)),
    ("setp.lt.u32 %p1, %r2, 99; vote.sync.uni.pred %p2, !%p1, -1; selp.b32 %r3, 1, 0, %p2;",
     np.ones(32)),
    ("redux.sync.add.s32 %r3, %r2, -1;", np.full(32, 32 * 100 + 31 * 16)),
    ("redux.sync.min.u32 %r3, %r2, -1;", np.full(32, 100)),
    ("redux.sync.max.s32 %r3, %r2, -1;", np.full(32, 131)),
    ("redux.sync.and.b32 %r3, %r2, -1;", np.zeros(32)),  # 100 has bits 2, 5, 6; 128 has bit 7
    ("redux.sync.or.b32 %r3, %r2, -1;", np.full(32, 0xFF)),
    ("redux.sync.xor.b32 %r3, %r2, -1;", np.full(32, np.bitwise_xor.reduce(100 + LANES))),
    ("and.b32 %r4, %r2, 1; match.any.sync.b32 %r3, %r4, -1;",
     np.where(LANES % 2, 0xAAAAAAAA, 0x55555555)),
    ("mov.u32 %r4, 5; match.all.sync.b32 %r3|%p1, %r4, -1;", np.full(32, 0xFFFFFFFF)),
    ("match.all.sync.b32 %r3|%p1, %r2, -1;", np.zeros(32)),
    ("activemask.b32 %r3;", np.full(32, 0xFFFFFFFF)),
    ("setp.lt.u32 %p1, %r1, 4; mov.u32 %r3, 0; @%p1 activemask.b32 %r3;",
     np.where(LANES < 4, 15, 0)),
    ("mov.u32 %r3, %lanemask_lt;", (1 << LANES.astype(np.uint64)) - 1),
    ("mov.u32 %r3, %lanemask_ge;", (-1 << LANES.astype(np.int64)) & 0xFFFFFFFF),
    ("mov.u32 %r3, %laneid;", LANES),
    # Half of the warp, by its own mask.
    ("mov.u32 %r3, 0; setp.lt.u32 %p1, %r1, 16; @%p1 redux.sync.add.u32 %r3, %r1, 0xFFFF;",
     np.where(LANES < 16, 120, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), COLLECTIVES)
def test_warp_collectives(body, expected):
    result = run(f"ld.global.u32 %r2, [%rd4]; {body} st.global.u32 [%rd5], %r3;", 100 + LANES)
    np.testing.assert_array_equal(result, np.asarray(expected).astype(np.uint32))


def test_a_collective_waits_for_lanes_that_come_by_another_way():
    """The low half takes a detour behind the shuffle and comes back to it."""
    result = run(
        """
        setp.lt.u32 %p1, %r1, 16;
        mov.u32 %r2, %r1;
        @%p1 bra DETOUR;
        MEET: shfl.sync.bfly.b32 %r3, %r2, 16, 31, -1;
        st.global.u32 [%rd5], %r3;
        ret;
        DETOUR: add.u32 %r2, %r2, 1000;
        bra.uni MEET;
        """,
        LANES,
    )
    np.testing.assert_array_equal(result, np.where(LANES < 16, LANES + 16, LANES - 16 + 1000))


ATOMICS = [
    # Threads 0..31 meet at one word that holds 10; old values in lane order, then the word.
    ("add.u32", "%r1", 10, 10 + np.cumsum(LANES) - LANES, 10 + 496),
    ("max.u32", "%r1", 10, np.maximum(10, np.maximum.accumulate(np.r_[0, LANES[:-1]])), 31),
    ("min.s32", "%r1", 10, np.r_[10, np.zeros(31)], 0),
    ("and.b32", "%r1", 10, np.r_[10, np.zeros(31)], 0),
    ("or.b32", "%r1", 0, np.bitwise_or.accumulate(np.r_[0, LANES[:-1]]), 31),
    ("xor.b32", "1", 0, LANES % 2, 0),
    ("exch.b32", "%r1", 10, np.r_[10, LANES[:-1]], 31),
    ("cas.b32", "%r1, 77", 3, np.where(LANES <= 3, 3, 77), 77),
    ("inc.u32", "9", 8, (8 + LANES) % 10, (8 + 32) % 10),
    ("dec.u32", "9", 1, (1 - LANES.astype(int)) % 10, (1 - 32) % 10),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "operands", "start", "old", "final"), ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(operation, operands, start, old, final, space):
    name, kind = operation.split(".")
    where = "%rd1" if space == "global" else "word"
    fill = f"@%p1 st.shared.u32 [word], {start}; bar.sync 0;" if space == "shared" else ""
    result = run(
        f"""
        .shared .align 4 .b8 word[4];
        setp.eq.u32 %p1, %r1, 0; {fill}
        atom.{space}.{name}.{kind} %r3, [{where}], {operands};
        st.global.u32 [%rd5], %r3;
        bar.sync 0;
        ld.{space}.u32 %r4, [{where}];
        st.global.u32 [%rd5+128], %r4;
        """,
        np.array([start], np.uint32),
        words=64,
    )
    np.testing.assert_array_equal(result, np.r_[old, np.full(32, final)].astype(np.uint32))


def test_red_adds_floats_in_lane_order():
    result = run(
        """
        cvt.rn.f32.u32 %f1, %r1;
        red.global.add.f32 [%rd1], %f1;
        bar.sync 0;
        ld.global.f32 %f2, [%rd1];
        st.global.f32 [%rd5], %f2;
        """,
        np.zeros(1, np.float32),
        np.float32,
    )
    assert (result == 496).all()


def test_vector_loads_and_stores():
    """Thread t moves four words, 16 bytes, and turns their order around."""
    values = np.arange(128, dtype=np.uint32)
    result = run(
        """
        mul.wide.u32 %rd6, %r1, 16;
        add.s64 %rd7, %rd1, %rd6; add.s64 %rd8, %rd2, %rd6;
        ld.global.nc.L1::no_allocate.v4.u32 {%r2, %r3, %r4, %r5}, [%rd7];
        st.global.v2.u32 [%rd8], {%r5, %r4};
        st.global.v2.u32 [%rd8+8], {%r3, %r2};
        """,
        values,
        words=128,
    )
    np.testing.assert_array_equal(result, values.reshape(32, 4)[:, ::-1].reshape(-1))


@pytest.mark.parametrize(("load", "expected"), [
    ("ld.global.u8 %r3, [%rd4];", 0x80),
    ("ld.global.s8 %r3, [%rd4];", 0xFFFFFF80),  # extended by its sign
    ("ld.global.u16 %r3, [%rd4+2];", 0x8070),
    ("ld.global.s16 %r3, [%rd4+2];", 0xFFFF8070),
    ("ld.global.b16 %h1, [%rd4+2]; cvt.u32.u16 %r3, %h1;", 0x8070),
    ("ld.u32 %r3, [%rd4];", 0x80706080),  # generic
    ("ld.volatile.global.u32 %r3, [%rd4];", 0x80706080),
    ("ldu.global.u32 %r3, [%rd4];", 0x80706080),
    ("prefetch.global.L1 [%rd4]; membar.gl; fence.acq_rel.gpu; nanosleep.u32 5; mov.u32 %r3, 7;",
     7),
])  # fmt: skip
def test_loads_extend_and_generic_addresses(load, expected):
    values = np.full(32, 0x80706080, np.uint32)
    assert (run(f"{load} st.global.u32 [%rd5], %r3;", values) == expected).all()


def test_generic_addresses_of_shared_local_and_param_memory():
    result = run(
        """
        .local .align 4 .b8 frame[8];
        .shared .align 4 .b8 tile[128];
        mov.u64 %rd6, frame; cvta.local.u64 %rd7, %rd6;
        add.u32 %r2, %r1, 5; st.u32 [%rd7+4], %r2;    // local memory of each thread
        ld.local.u32 %r3, [%rd6+4];
        mov.u32 %r4, tile; shl.b32 %r5, %r1, 2; add.u32 %r5, %r4, %r5;
        st.shared.u32 [%r5], %r3;
        mov.u64 %rd8, tile; cvta.shared.u64 %rd9, %rd8; add.s64 %rd9, %rd9, %rd3;
        ld.u32 %r6, [%rd9];                           // shared memory by a generic address
        mov.b64 %rd10, input; cvta.param.u64 %rd11, %rd10;
        ld.u64 %rd12, [%rd11]; ld.param.u64 %rd13, [%rd10+8];
        sub.s64 %rd12, %rd12, %rd1; sub.s64 %rd13, %rd13, %rd2;  // both 0
        cvt.u32.u64 %r7, %rd12; cvt.u32.u64 %r8, %rd13;
        add.u32 %r6, %r6, %r7; add.u32 %r6, %r6, %r8;
        st.global.u32 [%rd5], %r6;
        """,
        LANES,
    )
    np.testing.assert_array_equal(result, LANES + 5)


def test_dynamic_shared_memory_and_module_variables():
    result = run(
        """
        mov.u32 %r2, pool; shl.b32 %r3, %r1, 2; add.u32 %r2, %r2, %r3;
        mov.u64 %rd6, table; and.b32 %r4, %r1, 1; mul.wide.u32 %rd7, %r4, 4;
        add.s64 %rd6, %rd6, %rd7; ld.const.f32 %f1, [%rd6];
        st.shared.f32 [%r2], %f1; ld.shared.f32 %f2, [%r2]; st.global.f32 [%rd5], %f2;
        """,
        LANES,
        np.float32,
        shared_bytes=128,
        declarations=".extern .shared .align 16 .b8 pool[];\n"
        ".const .align 4 .f32 table[2] = {0f3F800000, 0f40000000};",
    )
    np.testing.assert_array_equal(result, np.where(LANES % 2, 2, 1))


def test_loops_of_different_length_and_branch_tables():
    """Thread t adds t, t - 1, ..., 1, then adds 10, 20 or 30 by t mod 3."""
    result = run(
        """
        mov.u32 %r2, 0; mov.u32 %r3, %r1;
        LOOP: setp.eq.u32 %p1, %r3, 0; @%p1 bra END;
        add.u32 %r2, %r2, %r3; sub.u32 %r3, %r3, 1; bra.uni LOOP;
        END: rem.u32 %r4, %r1, 3;
        TABLE: .branchtargets ZERO, ONE, TWO;
        brx.idx %r4, TABLE;
        ZERO: add.u32 %r2, %r2, 10; bra STORE;
        ONE: add.u32 %r2, %r2, 20; bra STORE;
        TWO: add.u32 %r2, %r2, 30;
        STORE: st.global.u32 [%rd5], %r2; exit;
        """,
        LANES,
    )
    np.testing.assert_array_equal(result, LANES * (LANES + 1) // 2 + 10 * (LANES % 3 + 1))


@pytest.mark.parametrize(("reduction", "expected"), [
    ("barrier.cta.red.popc.aligned.u32 %r3, 0, %p1;", 40),
    ("bar.red.and.pred %p2, 0, %p1; selp.b32 %r3, 1, 0, %p2;", 0),
    ("bar.red.or.pred %p2, 0, !%p1; selp.b32 %r3, 1, 0, %p2;", 1),
])  # fmt: skip
def test_barriers_that_reduce(reduction, expected):
    body = f"setp.lt.u32 %p1, %r1, 40; {reduction} st.global.u32 [%rd5], %r3;"
    assert (run(body, np.zeros(64, np.uint32), block=64) == expected).all()


def test_scoped_registers_of_inline_assembly():
    result = run(
        "mov.u32 %r2, 1; { .reg .b32 t; add.u32 t, %r1, 1; add.u32 %r2, %r2, t; }\n"
        "{ .reg .b32 t; mov.u32 t, 100; add.u32 %r2, %r2, t; } st.global.u32 [%rd5], %r2;",
        LANES,
    )
    np.testing.assert_array_equal(result, LANES + 102)


def test_grid_and_block_extents():
    """2 x 3 blocks of 4 x 2 x 2 threads: every thread writes its own global number."""
    body = """
        mov.u32 %r2, %tid.x; mov.u32 %r3, %tid.y; mov.u32 %r4, %tid.z;
        mov.u32 %r5, %ctaid.x; mov.u32 %r6, %ctaid.y; mov.u32 %r7, %nctaid.x; mov.u32 %r8, %ntid.y;
        mad.lo.u32 %r9, %r4, %r8, %r3; shl.b32 %r9, %r9, 2; add.u32 %r9, %r9, %r2;
        mad.lo.u32 %r10, %r6, %r7, %r5; shl.b32 %r10, %r10, 4; add.u32 %r9, %r9, %r10;
        mul.wide.u32 %rd3, %r9, 4; add.s64 %rd5, %rd2, %rd3; st.global.u32 [%rd5], %r9;
        """
    device = ptx.Device(1 << 16)
    out = device.empty(4 * 96, "output")
    code = module(PROLOGUE + body, PARAMETERS)
    ptx.run_kernel(code, "test", (2, 3), (4, 2, 2), [0, out], device=device).check()
    np.testing.assert_array_equal(device.get(out, np.uint32), np.arange(96))


def test_part_of_a_grid():
    body = "mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd5, %rd2, %rd3;"
    code = module(f"{PROLOGUE}{body} st.global.u32 [%rd5], %r2;", PARAMETERS)
    device = ptx.Device(1 << 16)
    out = device.put(np.full(8, 99, np.uint32), "output")
    ptx.run_kernel(code, "test", 8, 1, [0, out], device=device, blocks=range(2, 5)).check()
    assert device.get(out, np.uint32).tolist() == [99, 99, 2, 3, 4, 99, 99, 99]


def test_arguments_and_launches_that_cannot_be():
    code = module("ret;", ".param .u64 a, .param .f32 b", directives=".maxntid 64, 1, 1")
    device = ptx.Device(1 << 12)
    for settings, what in (
        ({"name": "no"}, "no kernel no; the module has test"),
        ({"arguments": [1]}, "takes 2 arguments, got 1"),
        ({"arguments": [1, b"12345"]}, "b has 4 bytes, got 5"),
        ({"block": 65}, "of at most 64 threads"),
        ({"blocks": range(0, 2)}, "of a grid of 1"),
    ):
        call = {"name": "test", "grid": 1, "block": 1, "arguments": [1, 2.0]} | settings
        with pytest.raises(ptx.PtxError, match=what):
            ptx.run_kernel(code, device=device, **call)
    with pytest.raises(ptx.PtxError, match="no room for big"):
        device.empty(1 << 20, "big")
    with pytest.raises(ptx.PtxError, match="4 of 4 bytes of unset never written"):
        device.get(device.empty(4, "unset"), np.float32)


def test_an_endless_loop_ends():
    code = module("L: bra.uni L;")
    with pytest.raises(ptx.PtxError, match="step_limit"):
        ptx.run_kernel(code, "test", 1, 1, [], device=ptx.Device(1 << 12), step_limit=1000)


def test_every_opcode_has_a_test(request):
    """A builder whose opcode no file of this folder uses is one that nobody has checked."""
    texts = [path.read_text() for path in sorted(request.path.parent.glob("test_ptx_*.py"))]
    missing = [name for name in supported_opcodes() if not any(f"{name}." in t for t in texts)]
    assert not missing
