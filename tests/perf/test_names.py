"""Names that people read, and the patterns that find them."""

import pytest

from moge_bench.perf import names

REGION = "instructions/avx2 backward N=64 k=2 h=3"
CASE = "router/N64-k2-h3-T8192-uniform-fp32-valid-t2"


def test_a_region_has_words_and_keeps_what_it_does_not_know():
    assert names.region_id("avx2 backward 64 2 3 320") == REGION
    assert names.title(REGION) == "avx2 backward N=64 k=2 h=3"
    unit = names.region_id("avx2 forward 64 2 3u 320")
    assert unit == "instructions/avx2 forward N=64 k=2 h=3u"  # with unit energy
    assert names.region_id("avx2 gather rows 7") == "instructions/avx2 gather rows 7"
    assert names.num_tokens("avx2 backward 64 2 3 320") == 320


@pytest.mark.parametrize(
    ("name", "title"),
    [(CASE, "router N=64 k=2 h=3, 8192 tokens, 2 threads"),
     ("router/N16-k1-h3-T64-zipf-bf16-torus-t1",
      "router N=16 k=1 h=3, 64 tokens, zipf, bf16, 1 thread"),
     ("moe_layer/N32-k2-h3-T1024-d128-f256-uniform-fp32-valid-t2",
      "MoE layer N=32 k=2 h=3, 1024 tokens, d=128 f=256, 2 threads"),
     ("something else", "something else")],
)  # fmt: skip
def test_titles(name, title):
    assert names.title(name) == title


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [(None, True), ("avx2 back", True), ("N=64", True), ("avx2*h=3", True), ("avx2", True),
     ("instructions/*", True), ("avx2*k=1*", False), ("N=6*", False), ("baseline", False),
     ("avx2 backward N=64 k=2 h=?", True), ("[a]vx2*", False)],
)  # fmt: skip
def test_a_pattern_is_a_part_or_a_glob_of_the_whole(pattern, fits):
    assert names.matches(REGION, pattern) is fits


def test_a_pattern_fits_the_id_as_well_as_the_title():
    assert names.matches(CASE, "N64-k2") and names.matches(CASE, "8192 tokens")


def test_choose_names_what_there_is():
    assert names.choose([REGION, CASE], "T8192", "here") == [CASE]
    with pytest.raises(ValueError, match=r"case='x9' matches nothing in here.*it holds router/N64"):
        names.choose([CASE], "x9", "here")
