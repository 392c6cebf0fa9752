"""Shuffles, votes, reductions, matches and atomics of 32 lanes against results by hand."""

import numpy as np
import pytest
from ptx_snippets import LANES, run

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
