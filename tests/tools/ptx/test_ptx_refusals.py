"""What the interpreter refuses, by line; and its fma against hand arithmetic."""

import numpy as np
import pytest
from ptx_snippets import compute

from tools.ptx import PtxError
from tools.ptx.scalars import fma32


@pytest.mark.parametrize(("instruction", "what"), [
    ("add.rm.f32 %d, %a, %b;", "modifier .rm"),
    ("add.cc.u32 %d, %a, %b;", "modifier .cc"),
    ("mul.f16 %d, %a, %b;", "type"),
    ("fma.f32x2 %d, %a, %b, %a;", "without one of .rn"),
    ("mad.rn.f32x2 %d, %a, %b, %a;", "type"),
    ("mad.rn.bf16x2 %d, %a, %b, %a;", "type"),
    ("max.f32x2 %d, %a, %b;", "type"),
    ("fma.rz.f32 %d, %a, %b, %a;", "without one of .rn, .rm"),
    ("sad.u32 %d, %a, %b, %a;", "opcode sad"),
    ("wgmma.fence.sync.aligned;", "opcode wgmma"),
    ("add.s64 %d, %a, %b;", "of type b32"),
    ("mov.u32 %d, %clock;", "special register %clock"),
    ("shfl.down.b32 %d, %a, 1, 31;", "without one of .sync"),
    ("cvt.rz.f32.s32 %d, %a;", "without one of .rn"),
    ("ld.acquire.gpu.global.u32 %d, [%at];", "modifier .acquire"),
    ("bar.sync 1;", "other than number 0"),
    ("call.uni f, (%a);", "opcode call"),
])  # fmt: skip
def test_what_is_not_supported_is_named_with_its_line(instruction, what):
    with pytest.raises(PtxError, match=r"PTX line \d+") as error:
        compute(instruction, [("u32", [1]), ("u32", [2])], ["u32"])
    assert what in str(error.value) and instruction.split()[0].rstrip(";") in str(error.value)


def test_fma_rounds_once_also_among_subnormals():
    """Against the exact result in rationals, rounded by Python's own division."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=3000) * 2.0 ** rng.integers(-80, 20, 3000) for _ in range(2))
    c = rng.normal(size=3000) * 2.0 ** rng.integers(-150, 0, 3000)
    a, b, c = (x.astype(np.float32) for x in (a, b, c))
    got = fma32(a, b, c)
    for x, y, z, value in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        below, above = (
            np.nextafter(value, np.float32(-np.inf)),
            np.nextafter(value, np.float32(np.inf)),
        )
        error = abs(Fraction(float(value)) - exact)
        assert error <= abs(Fraction(float(below)) - exact)
        assert error <= abs(Fraction(float(above)) - exact)
