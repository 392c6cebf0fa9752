"""Loops read from a disassembly."""

from moge_bench.perf import static_count

# An outer loop from 10 to 30 with two inner ones: 14 to 1c (3 instructions) and 20 to 24 (2).
TEXT = """
0000000000000010 <void moge::(anonymous namespace)::insert_top<moge::(anonymous namespace)::Avx2Float, 2>(int)>:
  10:\tvxorps %xmm0,%xmm0,%xmm0
  14:\tadd    $0x1,%eax
  18:\tcmp    %eax,%esi
  1c:\tjne    14 <void moge::f+0x4>
  20:\tadd    $0x1,%eax
  24:\tjne    20 <void moge::f+0x10>
  28:\tjmp    30 <void moge::f+0x20>
  2c:\tcall   10 <void moge::f>
  30:\tjne    10 <void moge::f>
  34:\tret

0000000000000040 <void moge::(anonymous namespace)::insert_top<moge::(anonymous namespace)::Avx2Float, 3>(int)>:
  40:\tjne    40 <g>
"""  # noqa: E501


def test_loops_that_hold_no_other():
    assert static_count.read_loops(TEXT, "Avx2Float") == {"insert_top<V, 2>": [3, 2]}
    assert static_count.read_loops(TEXT, "Avx512Float") == {}


def test_table():
    text = static_count.table({"avx2": {"insert_top<V, 2>": [3, 2]}, "avx512": {}})
    assert "| `insert_top<V, 2>` | 3, 2 | - |" in text
    assert static_count.table({}) == ""
