"""launch.h as ctypes: sizes and offsets are those that a C++ compiler gives the same header."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from moge_bench.ops.topography import Topography
from tools.interface import groups_struct, read_structs

CSRC = Path(__file__).resolve().parents[2] / "csrc"
HEADER = "cuda/launch.h"
STRUCTS = [
    "BadRows", "GroupMap", "RouteForward", "RouteBackward", "GroupNormForward",
    "GroupNormBackward", "SortChoices", "GatherRows", "CombineRows", "CombineWeightGrad",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_layout_is_the_compilers(tmp_path):
    structs = read_structs(CSRC / HEADER, STRUCTS)
    places = [(name, field[0]) for name, struct in structs.items() for field in struct._fields_]
    lines = [f'printf("%zu\\n", sizeof({name}));' for name in structs]
    lines += [f'printf("%zu\\n", offsetof({name}, {field}));' for name, field in places]
    source, binary = tmp_path / "layout.cpp", tmp_path / "layout"
    source.write_text(
        '#include <cstddef>\n#include <cstdio>\n#include "cuda/launch.h"\n'
        "using namespace moge::cuda;\n"
        f"int main() {{ {' '.join(lines)} }}\n"
    )
    subprocess.run(["g++", "-w", "-I", str(CSRC), str(source), "-o", str(binary)], check=True)
    output = subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout
    ours = [ctypes.sizeof(struct) for struct in structs.values()]
    ours += [getattr(structs[name], field).offset for name, field in places]
    assert ours == [int(word) for word in output.split()]


def test_unknown_structs_and_types_are_named(tmp_path):
    header = tmp_path / "launch.h"
    header.write_text("struct A {\n  dim3 grid;  // blocks\n};\n")
    with pytest.raises(ValueError, match="has no struct B"):
        read_structs(header, ["B"])
    with pytest.raises(ValueError, match="'dim3 grid' has a type other than"):
        read_structs(header, ["A"])


def test_a_stride_beyond_every_map_is_bounded_as_in_the_plan():
    groups = groups_struct(CSRC / HEADER, Topography(2, 4, 2, stride=5000), 0)
    assert groups.stride == 1024
