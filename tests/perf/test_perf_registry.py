"""The declared cases: complete, uniquely named, skewed as they say."""

import itertools

import pytest
import torch

from moge_bench.ops.topography import Topography
from moge_bench.perf import registry
from moge_bench.perf.registry import Case


def test_grid_is_the_full_product():
    routers = {
        (c.num_experts, c.top_k, c.group_size, c.num_tokens, c.skew)
        for c in registry.GRID
        if c.op == "router"
    }
    axes = ((8, 16, 32, 64, 128, 256), (1, 2, 4, 8), (2, 3, 4, 5), (1024, 8192, 65536))
    skews = ("uniform", "zipf", "collapsed")
    # 6 N x 4 k x 4 h x 3 T x 3 skews = 864; k = 8 fits N = 8, so nothing is skipped.
    assert len(routers) == 864
    assert routers == set(itertools.product(*axes, skews))


def test_bars_are_in_core():
    names = {case.name for case in registry.CORE}
    for tokens in (8192, 65536):
        assert f"router/N64-k2-h3-T{tokens}-uniform-fp32-valid-t2" in names
    assert "moe_layer/N32-k2-h3-T8192-d256-f512-uniform-fp32-valid-t2" in names


def test_names_are_unique_and_say_everything():
    for cases in registry.SETS.values():
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("num_experts", "group_size", "border"),
    # 8 is a 2 x 4 map: h = 2 fits, 3 does not. 16 is 4 x 4. 128 is 8 x 16.
    [(8, 2, "valid"), (8, 3, "torus"), (16, 4, "valid"), (16, 5, "torus"), (128, 5, "valid")],
)
def test_border_follows_the_map(num_experts, group_size, border):
    case = Case("router", 16, num_experts, 1, group_size)
    assert case.border == border and f"-{border}-" in case.name
    assert isinstance(case.topography, Topography)  # constructing it checks that the group fits


def test_skews_are_what_they_say():
    share = {}
    for skew in registry.SKEWS:
        logits = registry.make_logits(Case("router", 4096, 32, 2, 3, skew))
        first = torch.bincount(logits.argmax(dim=1), minlength=32).double() / 4096
        share[skew] = first.max().item()
    assert share["uniform"] < 0.06  # 1/32 = 0.031
    assert 0.1 < share["zipf"] < 0.5  # 1 / H(32) = 0.25
    top2 = registry.make_logits(Case("router", 4096, 32, 2, 3, "collapsed")).topk(2).indices
    assert len(torch.unique(top2)) <= 8  # nearly all tokens take the same two
    assert (top2.sort(dim=1).values == top2.sort(dim=1).values.mode(dim=0).values).all(
        1
    ).double().mean() > 0.9


def test_inputs_do_not_depend_on_threads():
    one, two = (Case("router", 64, 16, 2, 3, threads=t) for t in (1, 2))
    assert torch.equal(registry.make_logits(one), registry.make_logits(two))


def test_select_filters():
    cases = registry.select("core", "router/*T65536*")
    assert [case.num_tokens for case in cases] == [65536]
    assert len(registry.select("grid", limit=7)) == 7
    assert {case.threads for case in registry.select("core", threads=1)} == {1}
    assert {case.num_tokens for case in registry.select("core", "T65536")} == {65536}
    with pytest.raises(ValueError, match=r"in set 'core': .* a part of a name.*; it holds router/"):
        registry.select("core", "nonsense")
    with pytest.raises(ValueError, match="set must be one of"):
        registry.select("cores")


def test_bad_cases_name_the_argument():
    with pytest.raises(ValueError, match="top_k must be from 1 to 8, got 9"):
        Case("router", 16, 8, 9, 2)
    with pytest.raises(ValueError, match="skew"):
        Case("router", 16, 8, 1, 2, skew="flat")
