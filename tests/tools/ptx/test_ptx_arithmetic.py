"""Every arithmetic, comparison, bit and conversion instruction against values made by hand."""

import struct

import numpy as np
import pytest
from ptx_snippets import compute

INF, NAN = float("inf"), float("nan")
TINY = 2.0**-149  # the smallest subnormal of float32


def f32(*values):
    return ("f32", list(values))


def u32(*values):
    return ("u32", list(values))


def s32(*values):
    return ("s32", list(values))


def u64(*values):
    return ("u64", list(values))


def f32x2(*pairs):
    """Two float32 in each 64-bit register, the lower half first."""
    return u64(*(int.from_bytes(struct.pack("<2f", *pair), "little") for pair in pairs))


def s64(*values):
    return ("s64", list(values))


def f64(*values):
    return ("f64", list(values))


def u16(*values):
    return ("u16", list(values))


def pred(*values):
    return ("pred", list(values))


# instruction, inputs in the order %a %b %c %e, outputs %d %q.
INTEGER = [
    ("add.s32 %d, %a, %b;", [s32(1, 2**31 - 1), s32(2, 1)], [s32(3, -(2**31))]),
    ("add.u32 %d, %a, 7;", [u32(1, 2**32 - 1)], [u32(8, 6)]),
    ("add.s64 %d, %a, -1;", [s64(0, 2**40)], [s64(-1, 2**40 - 1)]),
    ("add.s16 %d, %a, %b;", [u16(65535), u16(2)], [u16(1)]),
    ("sub.s32 %d, %a, %b;", [s32(1, -5), s32(3, -7)], [s32(-2, 2)]),
    ("sub.u64 %d, %a, %b;", [u64(5), u64(3)], [u64(2)]),
    ("mul.lo.s32 %d, %a, %b;", [s32(-3, 65536), s32(7, 65537)], [s32(-21, 65536)]),
    ("mul.lo.u64 %d, %a, %b;", [u64(2**33), u64(2**31 + 1)], [u64(2**33)]),
    ("mul.hi.u32 %d, %a, %b;", [u32(2**31), u32(6)], [u32(3)]),
    ("mul.hi.s32 %d, %a, %b;", [s32(-(2**31)), s32(6)], [s32(-3)]),
    ("mul.hi.u64 %d, %a, %b;", [u64(2**63), u64(6)], [u64(3)]),
    ("mul.hi.s64 %d, %a, %b;", [s64(-(2**63)), s64(6)], [s64(-3)]),
    ("mul.wide.s32 %d, %a, %b;", [s32(-3, 2**30), s32(5, 8)], [s64(-15, 2**33)]),
    ("mul.wide.u32 %d, %a, %b;", [u32(2**32 - 1), u32(2)], [u64(2**33 - 2)]),
    ("mul.wide.u16 %d, %a, %b;", [u16(65535), u16(2)], [u32(131070)]),
    ("mad.lo.s32 %d, %a, %b, %c;", [s32(3), s32(-4), s32(5)], [s32(-7)]),
    ("mad.hi.u32 %d, %a, %b, %c;", [u32(2**31), u32(6), u32(5)], [u32(8)]),
    ("mad.wide.u32 %d, %a, %b, %c;", [u32(2**31), u32(4), u64(1)], [u64(2**33 + 1)]),
    ("mad.wide.s32 %d, %a, 4, %c;", [s32(-2), s32(0), s64(100)], [s64(92)]),
    # Division truncates towards zero, the remainder has the sign of the dividend.
    ("div.s32 %d, %a, %b;", [s32(7, -7, 7, -(2**31)), s32(2, 2, -2, 1)],
     [s32(3, -3, -3, -(2**31))]),
    ("rem.s32 %d, %a, %b;", [s32(7, -7, 7), s32(2, 2, -2)], [s32(1, -1, 1)]),
    ("div.u32 %d, %a, %b;", [u32(2**32 - 1), u32(2)], [u32(2**31 - 1)]),
    ("rem.u64 %d, %a, %b;", [u64(2**40 + 3), u64(2**40)], [u64(3)]),
    ("div.s64 %d, %a, %b;", [s64(-(2**40)), s64(3)], [s64(-366503875925)]),
    ("min.s32 %d, %a, %b;", [s32(-1, 4), s32(2, 3)], [s32(-1, 3)]),
    ("min.u32 %d, %a, %b;", [u32(2**32 - 1), u32(2)], [u32(2)]),
    ("max.s64 %d, %a, %b;", [s64(-1), s64(-2)], [s64(-1)]),
    ("max.u32 %d, %a, %b;", [u32(2**32 - 1), u32(2)], [u32(2**32 - 1)]),
    ("neg.s32 %d, %a;", [s32(5, -(2**31))], [s32(-5, -(2**31))]),
    ("abs.s32 %d, %a;", [s32(-5, 5)], [s32(5, 5)]),
    ("abs.s64 %d, %a;", [s64(-(2**40))], [s64(2**40)]),
]  # fmt: skip

ONE_UP = 1 + 2.0**-23  # the float after 1
FLOAT = [
    ("add.f32 %d, %a, %b;", [f32(1, INF, 2**24), f32(2, -INF, 1)], [f32(3, NAN, 2**24)]),
    ("add.rn.f32 %d, %a, 0f3F000000;", [f32(1)], [f32(1.5)]),
    ("add.ftz.f32 %d, %a, %b;", [f32(TINY, 1), f32(0, TINY)], [f32(0, 1)]),
    ("add.f32 %d, %a, %b;", [f32(TINY), f32(TINY)], [f32(2 * TINY)]),
    ("add.f64 %d, %a, 0d3FE0000000000000;", [f64(2**53)], [f64(2**53)]),
    ("sub.f32 %d, %a, %b;", [f32(1), f32(3)], [f32(-2)]),
    ("mul.f32 %d, %a, %b;", [f32(3, 2.0**-100), f32(-2, 2.0**-40)], [f32(-6, 2.0**-140)]),
    ("mul.ftz.f32 %d, %a, %b;", [f32(2.0**-100), f32(2.0**-40)], [f32(0)]),
    ("mul.sat.f32 %d, %a, 0f40000000;", [f32(3, 0.25, -1, NAN)],
     [f32(1, 0.5, 0, 0)]),
    ("mul.f64 %d, %a, %b;", [f64(3), f64(0.5)], [f64(1.5)]),
    # (1 + e)(1 - e) - 1 = -e^2 with e = 2^-23: two roundings would give 0.
    ("fma.rn.f32 %d, %a, %b, %c;", [f32(ONE_UP), f32(1 - 2.0**-23), f32(-1)], [f32(-(2.0**-46))]),
    # 1 + 2^-24 + 2^-60 is just above the tie between 1 and its successor.
    ("fma.rn.f32 %d, %a, %b, %c;", [f32(2.0**-30, -(2.0**-30)), f32(2.0**-30, 2.0**-30),
     f32(1 + 2.0**-23, 1 + 2.0**-23)], [f32(ONE_UP, ONE_UP)]),
    # Towards minus infinity: 2^-60 above 1 is 1, 2^-60 below 1 is the float before it.
    ("fma.rm.f32 %d, %a, %b, %c;", [f32(2.0**-30, -(2.0**-30), 3), f32(2.0**-30, 2.0**-30, 2),
     f32(1, 1, 1)], [f32(1, 1 - 2.0**-24, 7)]),
    # Towards zero: just below 1 + 2^-23 is 1, 2^-60 below 1 is the float before it; 3 is exact.
    ("add.rz.f32 %d, %a, %b;", [f32(1, 1, -1, -1, 1), f32(2.0**-23 - 2.0**-40, -(2.0**-60),
     -(2.0**-60), 2.0**-60, 2)], [f32(1, 1 - 2.0**-24, -1, 2.0**-24 - 1, 3)]),
    # Pairs: upper half 1.5 * 2 + 1, lower half infinity times 0.
    ("fma.rn.f16x2 %d, %a, %b, %c;", [u32(0x3E007C00), u32(0x40000000), u32(0x3C000000)],
     [u32(0x44007FFF)]),
    ("fma.rn.bf16x2 %d, %a, %b, %c;", [u32(0x3FC07F80), u32(0x40000000), u32(0x3F800000)],
     [u32(0x40807FFF)]),
    # 2^-11 (1 - 2^-20) over 1 + 2^-10 is below the tie, by less than float32 tells; 1 + 1 + 0; past
    # the largest number; subnormal.
    ("fma.rn.f16x2 %d, %a, %b, %c;", [u32(0x10013C00, 0x7BFF0001), u32(0x3BFE3C00, 0x40003C00),
     u32(0x3C013C00, 0x00000001)], [u32(0x3C014000, 0x7C000002)]),
    ("fma.rn.bf16x2 %d, %a, %b, %c;", [u32(0x3B813F80, 0x7F7F0001), u32(0x3F7E3F80, 0x40003F80),
     u32(0x3F813F80, 0x00000001)], [u32(0x3F814000, 0x7F800002)]),
    ("add.rn.f32x2 %d, %a, %b;", [f32x2((1, -2), (INF, TINY)), f32x2((3, 5), (1, TINY))],
     [f32x2((4, 3), (INF, 2 * TINY))]),
    ("mul.f32x2 %d, %a, %b;", [f32x2((3, -2)), f32x2((0.5, 8))], [f32x2((1.5, -16))]),
    ("sub.rn.ftz.f32x2 %d, %a, %b;", [f32x2((TINY, 1)), f32x2((0, 3))], [f32x2((0, -2))]),
    # The halves are rounded once each: see the first fma of f32.
    ("fma.rn.f32x2 %d, %a, %b, %c;", [f32x2((ONE_UP, 2)), f32x2((1 - 2.0**-23, 3)),
     f32x2((-1, 4))], [f32x2((-(2.0**-46), 10))]),
    ("fma.rn.sat.f32 %d, %a, %b, %a;", [f32(2, -1), f32(1, 1)], [f32(1, 0)]),
    ("fma.rn.f64 %d, %a, %b, %c;", [f64(1 + 2.0**-52), f64(1 - 2.0**-52), f64(-1)],
     [f64(-(2.0**-104))]),
    ("mad.rn.f32 %d, %a, %b, %c;", [f32(2), f32(3), f32(4)], [f32(10)]),
    ("div.rn.f32 %d, %a, %b;", [f32(1, 1, 0), f32(3, 0, 0)], [f32(np.float32(1) / np.float32(3),
     INF, NAN)]),
    ("div.full.f32 %d, %a, %b;", [f32(6), f32(4)], [f32(1.5)]),
    ("div.approx.ftz.f32 %d, %a, %b;", [f32(6, TINY), f32(4, 1)], [f32(1.5, 0)]),
    ("div.rn.f64 %d, %a, %b;", [f64(1), f64(3)], [f64(1 / 3)]),
    ("min.f32 %d, %a, %b;", [f32(1, NAN, -INF), f32(2, 3, 5)], [f32(1, 3, -INF)]),
    ("max.f32 %d, %a, %b;", [f32(1, NAN, NAN), f32(2, 3, NAN)], [f32(2, 3, NAN)]),
    ("max.NaN.f32 %d, %a, %b;", [f32(1, NAN), f32(2, 3)], [f32(2, NAN)]),
    ("max.f32 %d, %a, %b, %c;", [f32(1), f32(5), f32(2)], [f32(5)]),
    ("min.f64 %d, %a, %b;", [f64(1), f64(2)], [f64(1)]),
    ("neg.f32 %d, %a;", [f32(1, 0, -INF)], [f32(-1, -0.0, INF)]),
    ("abs.f32 %d, %a;", [f32(-1, -0.0)], [f32(1, 0)]),
    ("abs.ftz.f32 %d, %a;", [f32(-TINY)], [f32(0)]),
    ("copysign.f32 %d, %a, %b;", [f32(-1), f32(3)], [f32(-3)]),  # the sign of %a, the size of %b
    ("sqrt.rn.f32 %d, %a;", [f32(2, -1)], [f32(np.sqrt(np.float32(2)), NAN)]),
    ("sqrt.approx.ftz.f32 %d, %a;", [f32(9, TINY)], [f32(3, 0)]),
    ("sqrt.rn.f64 %d, %a;", [f64(2)], [f64(2**0.5)]),
    ("rcp.rn.f32 %d, %a;", [f32(4, 0, -0.0)], [f32(0.25, INF, -INF)]),
    ("rcp.approx.ftz.f32 %d, %a;", [f32(-8)], [f32(-0.125)]),
    ("rsqrt.approx.f32 %d, %a;", [f32(16, 0)], [f32(0.25, INF)]),
    ("ex2.approx.f32 %d, %a;", [f32(3, -INF, -1)], [f32(8, 0, 0.5)]),
    ("ex2.approx.ftz.f32 %d, %a;", [f32(-140)], [f32(0)]),
    ("lg2.approx.f32 %d, %a;", [f32(8, 0)], [f32(3, -INF)]),
    ("tanh.approx.f32 %d, %a;", [f32(0, INF)], [f32(0, 1)]),
    ("sin.approx.f32 %d, %a;", [f32(0)], [f32(0)]),
    ("cos.approx.f32 %d, %a;", [f32(0)], [f32(1)]),
]  # fmt: skip

COMPARISON = [
    ("setp.lt.s32 %d, %a, %b;", [s32(-1, 1), s32(1, 1)], [pred(1, 0)]),
    ("setp.lt.u32 %d, %a, %b;", [u32(2**32 - 1), u32(1)], [pred(0)]),
    ("setp.lo.u32 %d, %a, %b;", [u32(1), u32(2)], [pred(1)]),
    ("setp.ls.u32 %d, %a, %b;", [u32(2), u32(2)], [pred(1)]),
    ("setp.hi.u32 %d, %a, %b;", [u32(3), u32(2)], [pred(1)]),
    ("setp.hs.u32 %d, %a, %b;", [u32(2), u32(2)], [pred(1)]),
    ("setp.eq.b32 %d, %a, 5;", [u32(5, 6)], [pred(1, 0)]),
    ("setp.ne.s16 %d, %a, 0;", [u16(0, 9)], [pred(0, 1)]),
    ("setp.le.s64 %d, %a, %b;", [s64(-3), s64(-3)], [pred(1)]),
    ("setp.gt.s64 %d, %a, %b;", [s64(2**40), s64(3)], [pred(1)]),
    ("setp.ge.s32 %d, %a, %b;", [s32(3), s32(4)], [pred(0)]),
    ("setp.gt.f32 %d, %a, %b;", [f32(1, NAN), f32(0, 0)], [pred(1, 0)]),
    ("setp.ne.f32 %d, %a, %b;", [f32(1, NAN), f32(0, 0)], [pred(1, 0)]),
    ("setp.neu.f32 %d, %a, %b;", [f32(1, NAN, 0), f32(0, 0, 0)], [pred(1, 1, 0)]),
    ("setp.equ.f32 %d, %a, %b;", [f32(1, NAN), f32(0, 0)], [pred(0, 1)]),
    ("setp.ltu.f32 %d, %a, %b;", [f32(1, NAN), f32(0, 0)], [pred(0, 1)]),
    ("setp.leu.f32 %d, %a, %b;", [f32(0, NAN), f32(0, 0)], [pred(1, 1)]),
    ("setp.gtu.f32 %d, %a, %b;", [f32(0, NAN), f32(0, 0)], [pred(0, 1)]),
    ("setp.geu.f32 %d, %a, %b;", [f32(-1, NAN), f32(0, 0)], [pred(0, 1)]),
    ("setp.nan.f32 %d, %a, %b;", [f32(1, NAN), f32(0, 0)], [pred(0, 1)]),
    ("setp.num.f32 %d, %a, %b;", [f32(1, NAN), f32(0, 0)], [pred(1, 0)]),
    ("setp.gt.ftz.f32 %d, %a, %b;", [f32(TINY), f32(0)], [pred(0)]),
    ("setp.lt.f64 %d, %a, %b;", [f64(1), f64(2)], [pred(1)]),
    # The second destination is the opposite; .and joins a third predicate to both.
    ("setp.eq.s32 %d|%q, %a, %b;", [s32(1, 1), s32(1, 2)], [pred(1, 0), pred(0, 1)]),
    ("setp.eq.and.s32 %d|%q, %a, %b, %c;", [s32(1, 1, 2), s32(1, 1, 1), pred(1, 0, 1)],
     [pred(1, 0, 0), pred(0, 0, 1)]),
    ("setp.eq.or.s32 %d, %a, %b, !%c;", [s32(1, 1), s32(2, 2), pred(1, 0)], [pred(0, 1)]),
    ("setp.eq.xor.s32 %d, %a, %b, %c;", [s32(1, 1), s32(1, 1), pred(1, 0)], [pred(0, 1)]),
    ("selp.b32 %d, %a, %b, %c;", [u32(1, 2), u32(3, 4), pred(1, 0)], [u32(1, 4)]),
    ("selp.f32 %d, %a, 0f00000000, %c;", [f32(5, 6), f32(0, 0), pred(1, 0)], [f32(5, 0)]),
    ("selp.b64 %d, %a, %b, %c;", [u64(2**40), u64(3), pred(0)], [u64(3)]),
]  # fmt: skip

BITS = [
    ("mov.b32 %d, %a;", [f32(1)], [u32(0x3F800000)]),
    ("mov.u32 %d, 0x10;", [u32(0)], [u32(16)]),
    ("mov.pred %d, %a;", [pred(1, 0)], [pred(1, 0)]),
    ("mov.b64 %d, {%a, %b};", [u32(1), u32(2)], [u64(2 * 2**32 + 1)]),
    ("mov.b32 %d, {%a, %b};", [u16(1), u16(2)], [u32(0x20001)]),
    ("mov.b32 %d, {0, %a};", [u16(0x3F80)], [u32(0x3F800000)]),
    ("mov.b64 {%d, %q}, %a;", [u64(3 * 2**32 + 4)], [u32(4), u32(3)]),
    ("mov.b32 {%d, %q}, %a;", [u32(0x50006)], [u16(6), u16(5)]),
    ("mov.b32 {_, %d}, %a;", [u32(0x50006)], [u16(5)]),
    ("and.b32 %d, %a, %b;", [u32(0b1100), u32(0b1010)], [u32(0b1000)]),
    ("or.b64 %d, %a, %b;", [u64(2**40), u64(1)], [u64(2**40 + 1)]),
    ("xor.b16 %d, %a, %b;", [u16(0b1100), u16(0b1010)], [u16(0b0110)]),
    ("and.pred %d, %a, !%b;", [pred(1, 1), pred(1, 0)], [pred(0, 1)]),
    ("not.pred %d, %a;", [pred(1, 0)], [pred(0, 1)]),
    ("not.b32 %d, %a;", [u32(0)], [u32(2**32 - 1)]),
    ("shl.b32 %d, %a, %b;", [u32(3, 3, 3), u32(4, 31, 32)], [u32(48, 2**31, 0)]),
    ("shl.b64 %d, %a, 33;", [u64(1)], [u64(2**33)]),
    ("shr.u32 %d, %a, %b;", [u32(2**31, 7), u32(31, 99)], [u32(1, 0)]),
    ("shr.s32 %d, %a, %b;", [s32(-8, -8, 8), u32(1, 40, 40)], [s32(-4, -1, 0)]),
    ("shr.u64 %d, %a, 40;", [u64(2**41)], [u64(2)]),
    # The pair is %b:%a; left shifts return its upper word, right shifts its lower.
    ("shf.l.wrap.b32 %d, %a, %b, %c;", [u32(2**31, 5, 5), u32(1, 7, 7), u32(1, 32, 4)],
     [u32(3, 7, 112)]),
    ("shf.l.clamp.b32 %d, %a, %b, %c;", [u32(5), u32(7), u32(40)], [u32(5)]),
    ("shf.r.wrap.b32 %d, %a, %b, %c;", [u32(2, 9), u32(1, 3), u32(1, 32)], [u32(2**31 + 1, 9)]),
    ("shf.r.clamp.b32 %d, %a, %b, %c;", [u32(9), u32(3), u32(50)], [u32(3)]),
    ("bfe.u32 %d, %a, %b, %c;", [u32(0xABCD, 0xABCD, 7, 7), u32(4, 8, 0, 32), u32(8, 99, 0, 4)],
     [u32(0xBC, 0xAB, 0, 0)]),
    ("bfe.s32 %d, %a, %b, %c;", [s32(0xF0, 0x70, -1), u32(4, 4, 40), u32(4, 4, 4)],
     [s32(-1, 7, -1)]),
    ("bfe.u64 %d, %a, 32, 16;", [u64(0xABCD12345678)], [u64(0xABCD)]),
    ("bfi.b32 %d, %a, %b, %c, %e;", [u32(0xFF, 0xFF, 1), u32(0, 0xFFFF, 5), u32(8, 4, 32),
     u32(4, 8, 3)], [u32(0xF00, 0xFFFF, 5)]),
    ("bfi.b64 %d, %a, %b, 32, 64;", [u64(7), u64(9)], [u64(7 * 2**32 + 9)]),
    # Bytes of %b:%a are 7..0; a selector nibble with bit 3 replicates the sign of its byte.
    ("prmt.b32 %d, %a, %b, 0x5410;", [u32(0x33221100), u32(0x77665544)], [u32(0x55441100)]),
    ("prmt.b32 %d, %a, %b, %c;", [u32(0x80), u32(0), u32(0x8880)], [u32(0xFFFFFF80)]),
    # Table index = 4 a + 2 b + c: 0xE8 is the majority, 0x96 the exclusive or.
    ("lop3.b32 %d, %a, %b, %c, 0xE8;", [u32(0b1100), u32(0b1010), u32(0b1001)], [u32(0b1000)]),
    ("lop3.b32 %d, %a, %b, %c, 0x96;", [u32(0b1100), u32(0b1010), u32(0b1001)], [u32(0b1111)]),
    ("lop3.b32 %d, %a, %b, %c, 0x00;", [u32(1), u32(1), u32(1)], [u32(0)]),
    ("popc.b32 %d, %a;", [u32(0xF0F, 0)], [u32(8, 0)]),
    ("popc.b64 %d, %a;", [u64(2**40 + 1)], [u32(2)]),
    ("clz.b32 %d, %a;", [u32(1, 0)], [u32(31, 32)]),
    ("clz.b64 %d, %a;", [u64(1)], [u32(63)]),
    ("brev.b32 %d, %a;", [u32(1, 6)], [u32(2**31, 0x60000000)]),
    ("bfind.u32 %d, %a;", [u32(0x100, 0)], [u32(8, 2**32 - 1)]),
    ("bfind.shiftamt.u32 %d, %a;", [u32(0x100)], [u32(23)]),
    ("bfind.s32 %d, %a;", [s32(-2, -1)], [u32(0, 2**32 - 1)]),
]  # fmt: skip

CONVERSION = [
    ("cvt.u64.u32 %d, %a;", [u32(2**32 - 1)], [u64(2**32 - 1)]),
    ("cvt.s64.s32 %d, %a;", [s32(-2)], [s64(-2)]),
    ("cvt.u32.u64 %d, %a;", [u64(2**32 + 5)], [u32(5)]),
    ("cvt.u16.u32 %d, %a;", [u32(65537)], [u16(1)]),
    ("cvt.s32.s8 %d, %a;", [u32(0xFF)], [s32(-1)]),
    ("cvt.u32.u16 %d, %a;", [u16(65535)], [u32(65535)]),
    ("cvt.s32.s16 %d, %a;", [u16(65535)], [s32(-1)]),
    ("cvt.s8.s32 %d, %a;", [s32(0x1FF)], [s32(-1)]),  # extended by the destination's sign
    ("cvt.sat.u8.s32 %d, %a;", [s32(-5, 300, 7)], [u32(0, 255, 7)]),
    ("cvt.rn.f32.s32 %d, %a;", [s32(-3, 2**24 + 1)], [f32(-3, 2**24)]),
    ("cvt.rn.f32.u32 %d, %a;", [u32(2**32 - 1)], [f32(2**32)]),
    ("cvt.rn.f32.u64 %d, %a;", [u64(2**40)], [f32(2**40)]),
    ("cvt.rn.f64.s32 %d, %a;", [s32(-3)], [f64(-3)]),
    ("cvt.rzi.s32.f32 %d, %a;", [f32(-1.7, 3e9, -INF, NAN)], [s32(-1, 2**31 - 1, -(2**31), 0)]),
    ("cvt.rzi.u32.f32 %d, %a;", [f32(-1.7, 3e9, INF)], [u32(0, 3000000000, 2**32 - 1)]),
    ("cvt.rni.s32.f32 %d, %a;", [f32(2.5, 3.5)], [s32(2, 4)]),
    ("cvt.rmi.s32.f32 %d, %a;", [f32(-1.5)], [s32(-2)]),
    ("cvt.rpi.s32.f32 %d, %a;", [f32(-1.5)], [s32(-1)]),
    ("cvt.rzi.s64.f32 %d, %a;", [f32(-1.5, 1e30, NAN)], [s64(-1, 2**63 - 1, -(2**63))]),
    ("cvt.rni.f32.f32 %d, %a;", [f32(2.5, -0.4)], [f32(2, -0.0)]),
    ("cvt.rmi.f32.f32 %d, %a;", [f32(-1.5)], [f32(-2)]),
    ("cvt.sat.f32.f32 %d, %a;", [f32(1.5, -1, NAN, 0.5)], [f32(1, 0, 0, 0.5)]),
    ("cvt.f64.f32 %d, %a;", [f32(0.1)], [f64(float(np.float32(0.1)))]),
    ("cvt.rn.f32.f64 %d, %a;", [f64(1 + 2.0**-24, 1 + 3 * 2.0**-24)], [f32(1, 1 + 2.0**-22)]),
    ("cvt.rn.ftz.f32.f64 %d, %a;", [f64(2.0**-140)], [f32(0)]),
    # float16: 1.5 is 0x3E00, 65520 rounds to infinity, 2^-24 is the smallest subnormal.
    ("cvt.f32.f16 %d, %a;", [u16(0x3E00, 0x7C00, 1)], [f32(1.5, INF, 2.0**-24)]),
    ("cvt.rn.f16.f32 %d, %a;", [f32(1.5, 65520, 1 + 2.0**-11)], [u16(0x3E00, 0x7C00, 0x3C00)]),
    # bfloat16 is the upper half of float32, rounded to nearest even.
    ("cvt.f32.bf16 %d, %a;", [u16(0x3FC0)], [f32(1.5)]),
    ("cvt.rn.bf16.f32 %d, %a;", [f32(1.5, 1 + 2.0**-8, 1 + 3 * 2.0**-8, NAN, -INF)],
     [u16(0x3FC0, 0x3F80, 0x3F82, 0x7FFF, 0xFF80)]),
    ("cvt.rn.f16x2.f32 %d, %a, %b;", [f32(1.5), f32(1)], [u32(0x3E003C00)]),
    ("cvt.rn.bf16x2.f32 %d, %a, %b;", [f32(1.5), f32(1)], [u32(0x3FC03F80)]),
]  # fmt: skip

CASES = [*INTEGER, *FLOAT, *COMPARISON, *BITS, *CONVERSION]


@pytest.mark.parametrize(("instruction", "inputs", "outputs"), CASES)
def test_instruction(instruction, inputs, outputs):
    results = compute(instruction, inputs, [kind for kind, _ in outputs])
    for result, (kind, expected) in zip(results, outputs, strict=True):
        wanted = np.array(expected, result.dtype)
        # Equal bits, but any NaN is as good as another; -0.0 and 0.0 differ.
        same = (result == wanted) & (np.signbit(result) == np.signbit(wanted))
        if result.dtype.kind == "f":
            same |= np.isnan(result) & np.isnan(wanted)
        assert same.all(), f"{kind}: got {result}, want {wanted}"
