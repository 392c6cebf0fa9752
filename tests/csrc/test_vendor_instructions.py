"""No CPU kernel uses what gives other bits on another vendor's processor or another C library."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moge_bench import _C

KERNELS = Path(__file__).resolve().parents[2] / "csrc/cpu"
# Approximations whose tables each vendor chooses, as mnemonics and inside intrinsics; vector
# functions that only some compilers have; functions that every C library rounds in its own way.
APPROXIMATE = (
    r"v?(rsqrt|rcp)(14|28)?[ps][shd]|vexp2p[sd]|f2xm1|fyl2xp?1?|fpatan|fp?tan|fsin(cos)?|fcos"
)
INTRINSICS = r"_mm\d*_\w*(rsqrt|rcp|exp|log|pow|erf|cdfnorm|tanh|sin|cos|svml|dp_p)\w*"
FUNCTIONS = (
    r"(exp|exp2|expm1|log|log2|log1p|pow|erf|erfc|tanh|sinh|cosh|sin|cos|tan|cbrt|hypot|tgamma"
    r"|lgamma)[fl]?"
)
LIBRARY = rf"(__builtin_|std::|\b){FUNCTIONS}\s*\("


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def refused(text):
    found = (re.search(rule, without_comments(text)) for rule in (INTRINSICS, LIBRARY))
    return [match[0] for match in found if match]


@pytest.mark.parametrize("path", sorted(KERNELS.iterdir()), ids=lambda path: path.name)
def test_no_source_names_one(path):
    assert refused(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "y = _mm256_rsqrt_ps(a);", "y = _mm512_rcp14_ps(a);", "y = _mm_rcp_ss(a);",
        "y = _mm512_maskz_rsqrt28_pd(m, a);", "y = _mm256_exp_ps(a);", "y = std::exp(a);",
        "y = __builtin_expf (a);", "y = erfc(a);", "y = 1 / tanhf(a);",
    ],
)  # fmt: skip
def test_the_source_is_read(line):
    assert refused(line) and not refused("// " + line)


def test_the_source_may_say_what_is_exact():
    assert not refused("y = fma(sqrt(a), exp_nonpositive<V>(b), __builtin_fmaf(a, b, c));")


def tool(name, *arguments):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not on PATH")
    command = [name, *arguments, _C.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_instruction_is_one():
    """Of the whole extension, AVX-512 included, whatever the processor that runs this."""
    listing = tool("objdump", "--disassemble", "--no-show-raw-insn")
    mnemonics = set(re.findall(r"^ *[0-9a-f]+:\t(\w+)", listing, re.MULTILINE))
    if "avx512" not in _C.build_info()["instruction_sets"].split(","):
        pytest.skip("not built for x86-64")
    assert {"vsqrtps", "vdivps", "vfmadd213ps"} <= mnemonics  # the kernels were read
    assert not [name for name in mnemonics if re.fullmatch(APPROXIMATE, name)]


def test_the_library_gives_no_function_that_rounds():
    symbols = re.findall(r" U (\w+)", tool("nm", "--dynamic", "--undefined-only"))
    assert "aligned_alloc" in symbols  # the symbols were read
    assert not [name for name in symbols if re.fullmatch(FUNCTIONS, name)]


@pytest.mark.parametrize(
    "mnemonic", ["rsqrtss", "vrsqrtps", "vrcp14pd", "vrsqrt28ss", "rcpps", "fyl2x", "fsincos"]
)
def test_the_instructions_are_known(mnemonic):
    assert re.fullmatch(APPROXIMATE, mnemonic)
