"""Memory, control flow, barriers and launches, each on a snippet with results by hand."""

import numpy as np
import pytest
from ptx_snippets import LANES, PARAMETERS, PROLOGUE, module, run

from tools import ptx
from tools.ptx.decode import supported_opcodes


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


def test_what_a_parameter_points_to_is_not_its_name():
    names = (".ptr .align 1 a", ".ptr .global b", ".ptr .global .align 4 c", "d")
    code = module("ret;", ", ".join(f".param .u64 {name}" for name in names))
    assert [parameter.name for parameter in code.kernels["test"].parameters] == [*"abcd"]


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
