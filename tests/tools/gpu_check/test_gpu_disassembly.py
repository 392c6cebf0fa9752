"""Parsers of ptxas -v and nvdisasm -c on captured text, and short kernel names."""

import shutil

import pytest

from tools.gpu_check.disassembly import Resources, parse_ptxas, parse_sass, short_names

# nvcc 13.0 -Xptxas -v -arch=sm_90, of a kernel that spills and one that does not.
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4moge5scaleILi2EfEEvPKf' for 'sm_90'
ptxas info    : Function properties for _ZN4moge5scaleILi2EfEEvPKf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 256 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 16.474 ms
ptxas info    : Compiling entry function '_Z5spillPf' for 'sm_90'
ptxas info    : Function properties for _Z5spillPf
    136 bytes stack frame, 132 bytes spill stores, 264 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers, 136 bytes cumulative stack size
ptxas info    : Compile time = 3.186 ms
"""

# nvdisasm -c 13.2 of an sm_90 cubin, shortened: predicates, uniform predicates, a label, padding.
SASS = """\
\t.target\tsm_90

//--------------------- .nv.info --------------------------
        /*0000*/                   LOOKS.LIKE.CODE ;
//--------------------- .text._Z5scalePf --------------------------
\t.section\t.text._Z5scalePf,"ax",@progbits
.text._Z5scalePf:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*00c0*/              @!P1 LDG.E R2, desc[UR8][R2.64] ;
        /*00d0*/                   LDG.E R4, desc[UR8][R4.64] ;
        /*0120*/                   @!UP0 ULEA UR6, UR7, UR5, 0x18 ;
        /*0190*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0260*/                   EXIT ;
.L_x_0:
        /*0270*/                   BRA `(.L_x_0);
        /*0280*/                   NOP;
        /*0290*/                   NOP;
//--------------------- .text._Z5otherPf --------------------------
        /*0000*/                   EXIT ;
"""


def test_ptxas_resources_of_every_kernel():
    assert parse_ptxas(PTXAS) == {
        "_ZN4moge5scaleILi2EfEEvPKf": Resources(
            registers=12, spill_bytes=0, stack_bytes=0, static_shared_bytes=256
        ),
        # 132 stored + 264 loaded.
        "_Z5spillPf": Resources(
            registers=16, spill_bytes=396, stack_bytes=136, static_shared_bytes=0
        ),
    }


def test_a_kernel_without_its_lines_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="_Z5spillPf"):
        parse_ptxas(PTXAS.partition("ptxas info    : Used 16")[0])


def test_sass_counts_opcodes_without_padding_and_other_sections():
    assert parse_sass(SASS) == {
        "_Z5scalePf": {"LDC": 1, "LDG": 2, "ULEA": 1, "BAR": 1, "EXIT": 1, "BRA": 1},
        "_Z5otherPf": {"EXIT": 1},
    }


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt (binutils) is not installed")
@pytest.mark.parametrize(
    ("mangled", "short"),
    [
        ("_ZN4moge5scaleILi2EfEEvPKf", "scale<2, float>"),
        # nvcc names an anonymous namespace after the file, with a hash.
        ("_ZN4moge34_GLOBAL__N__aacb8cc6_4_a_cu_launch5scaleILi2EfEEvNS0_4ArgsE",
         "scale<2, float>"),
        ("_ZN4moge5scaleILi8ENS_4HalfELb1EEEvPKT0_", "scale<8, Half, true>"),
        ("_ZN4moge12_GLOBAL__N_14pickILi4ELNS_6BorderE1EEEvv", "pick<4, 1>"),
        ("_ZN4moge11reduce_sumsEPKdPd", "reduce_sums"),
        ("route_forward", "route_forward"),
    ],
)  # fmt: skip
def test_short_names(mangled, short):
    assert short_names([mangled]) == {mangled: short}
