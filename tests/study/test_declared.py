"""Contrasts that a study file declares: refused or taken, their cells, the weights of the cells."""

import pytest

from moge_bench.study.declared import DeclaredContrast, find_pairs, weigh
from moge_bench.study.grid import parse_grid

BASE = """
name: declared
question: q
base: {preset: tiny-vit, seeds: 2}
axes:
  method: [dense, moe, moge]
  moe.num_experts: [16, 36, 64]
  moe.group.size: [2, 3]
table:
  rows: [moe.num_experts, moe.group.size, method]
  metrics: [top1_accuracy, load_entropy, tokens_per_second]
"""


def study(**changes):
    """Parse a study that declares moge against moe, changed by ``changes``."""
    declared = {"metric": "top1_accuracy", "contrast": "[moge, moe]", "margin": 0.5} | changes
    fields = ", ".join(f"{name}: {value}" for name, value in declared.items() if value is not None)
    return parse_grid(f"primary: {{{fields}}}\n{BASE}", "x.yaml")


def pairs_of(grid):
    return find_pairs(grid.file.primary, grid.file.axes, grid.arms)


def methods(grid, pair):
    arms = {arm.arm_id: arm.configs[0] for arm in grid.arms}
    return arms[pair.arm_id].method, arms[pair.baseline_id].method


def test_what_is_not_said_has_its_default():
    declared = study().file.primary
    assert (declared.split, declared.axis, declared.at, declared.over) == (
        "test",
        "method",
        {},
        None,
    )
    assert study(at="{moe.num_experts: 64}").file.primary.at == {"moe.num_experts": (64,)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrc": 1}, r"no field is called 'primary\.metrc'; the nearest is 'metric'"),
        ({"margin": None}, r"primary\.margin is missing \(in the unit of the contrast"),
        ({"margin": 0}, r"primary\.margin must be above 0, got 0"),
        ({"contrast": "[moge]"}, r"primary\.contrast: value 2 is missing \(two values of `axis`: "
         r"an arm, its baseline\), got \['moge'\]"),
        ({"contrast": "moge"}, r"primary\.contrast must be a list \(two values of.*, got 'moge'"),
        ({"contrast": "[moge, moe, dense]"}, r"primary\.contrast must be a list of at most 2 "),
        ({"metric": "accuracy"}, r"primary\.metric: no metric .*; the nearest is 'top\d_accuracy'"),
        ({"metric": "tokens_per_second"}, r"primary\.metric: tokens_per_second .* cost.*top1_acc"),
        ({"metric": "top5_accuracy"}, r"\.metric: top5_accuracy is not among table\.metrics"),
        ({"split": "validation"}, r"primary\.split: validation is not among table.*: test"),
        ({"contrast": "[mog, moe]"}, r"primary\.contrast: method has no value 'mog'; it has \['"),
        ({"contrast": "[moe, moe]"}, r"primary\.contrast: 'moe' is compared with itself"),
        ({"axis": "moe.group.siz"}, r"primary\.axis: no axis .*the nearest is 'moe\.group\.size'"),
        ({"at": "{moe.num_experts: 65}"}, r"primary\.at: moe\.num_experts has no value 65; it has"),
        ({"at": "{moe.experts: 64}"}, r"primary\.at: no axis is called 'moe\.experts'"),
        ({"at": "{method: moe}"}, r"primary\.at: method is what is compared; `contrast` names it"),
        ({"scale": "log2"}, r"primary\.scale: it needs `over`"),
        ({"over": "method"}, r"primary\.over: method is what is compared; name another axis"),
        ({"over": "moe.num_experts", "scale": "log3"}, r"primary\.scale must be 'log2', 'log10'"),
        ({"over": "moe.num_experts", "between": "[16, 65]"}, r"primary\.between: .* no value 65"),
        (
            {"over": "moe.num_experts", "between": "[16, 64]", "scale": "log2"},
            "primary: scale is of a slope, between of a difference; keep one",
        ),
        (
            {"over": "method", "axis": "moe.group.size", "contrast": "[3, 2]"},
            r"primary\.over: a slope needs numbers above 0, method has 'dense'; `between` compares",
        ),
        (
            {"axis": "moe.group.size", "contrast": "[3, 2]", "at": "{method: [dense, moe]}"},
            r"primary: the grid has no two arms that differ in moe\.group\.size alone, 3 and 2",
        ),
        (
            {"over": "moe.group.size", "contrast": "[moe, dense]"},
            "no two arms that differ in method alone, 'moe' and 'dense' at two values of moe.group",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_right(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        study(**changes)
    assert str(caught.value).startswith("x.yaml: ")


def test_a_secondary_contrast_is_checked_like_the_primary():
    text = "secondary:\n- {metric: top1_accuracy, contrast: [moge, mo], margin: 1}\n" + BASE
    with pytest.raises(ValueError, match=r"secondary\.0\.contrast: method has no value 'mo'"):
        parse_grid(text, "x")
    with pytest.raises(ValueError, match=r"'secondary\.0\.margn'; the nearest is 'margin'"):
        parse_grid(text.replace("margin", "margn"), "x")


def test_a_cell_is_a_pair_of_arms_that_differ_in_the_axis_alone():
    grid = study()
    found = pairs_of(grid)
    # MoE does not know the group size: 3 sizes of N, 2 of h, the same moe arm for both h.
    assert len(found) == 6 and {methods(grid, pair) for pair in found} == {("moge", "moe")}
    assert found[1].at == {"moe.num_experts": 16, "moe.group.size": 3}
    assert found[0].baseline_id == found[1].baseline_id != found[2].baseline_id
    # At one place only, or at some.
    assert len(pairs_of(study(at="{moe.num_experts: 64}"))) == 2
    assert len(pairs_of(study(at="{moe.num_experts: [16, 64], moe.group.size: 3}"))) == 2


def test_arms_that_an_axis_does_not_change_are_one_cell():
    (*_, last) = found = pairs_of(study(contrast="[moe, dense]"))
    # Dense is one arm, MoE one for each N: the group size is in none of them.
    assert len(found) == 3 and last.at == {"moe.num_experts": 64}
    # h = 3 against h = 2 exists for moge alone.
    grid = study(axis="moe.group.size", contrast="[3, 2]")
    assert [methods(grid, pair) for pair in pairs_of(grid)] == [("moge", "moge")] * 3


def test_a_skipped_combination_has_no_cell():
    text = BASE.replace("table:", "skip: [{method: moge, moe.num_experts: 36}]\ntable:")
    declared = "primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 1}\n"
    levels = {pair.at["moe.num_experts"] for pair in pairs_of(parse_grid(declared + text, "x"))}
    assert levels == {16, 64}


def weights_of(grid, pairs=None):
    return weigh(grid.file.primary, pairs_of(grid) if pairs is None else pairs)


def test_a_mean_weighs_its_cells_alike():
    assert weights_of(study()) == [1 / 6] * 6
    assert weights_of(study(), []) is None


def test_a_slope_weighs_by_distance_from_the_middle():
    grid = study(over="moe.num_experts", at="{moe.group.size: 3}", scale="linear")
    # x = 16, 36, 64: mean 38.667; squares 513.8 + 7.1 + 641.8 = 1162.7.
    expected = [(x - 116 / 3) / (3488 / 3) for x in (16, 36, 64)]
    assert weights_of(grid) == pytest.approx(expected)
    # On log2 the outer two are 2 doublings apart: 36 is log2(36 / 16) = 1.17 from the first.
    log = weights_of(study(over="moe.num_experts", at="{moe.group.size: 3}"))
    differences = [10.0, 10 + 3 * 1.169925, 16.0]  # 3 a doubling
    assert sum(w * d for w, d in zip(log, differences, strict=True)) == pytest.approx(3.0)
    assert weights_of(grid, pairs_of(grid)[:1]) is None  # one place makes no slope


def test_a_difference_of_differences_weighs_its_two_sides():
    grid = study(over="moe.num_experts", between="[64, 16]")
    # Two group sizes at each of the two; 36 is not asked for.
    assert [pair.level for pair in pairs_of(grid)] == [16, 16, 64, 64]
    assert weights_of(grid) == [-0.5, -0.5, 0.5, 0.5]
    assert weights_of(grid, pairs_of(grid)[:2]) is None


def test_units():
    declared = study().file.primary
    assert declared.unit == "points"
    assert study(over="moe.num_experts").file.primary.unit == "points per doubling"
    assert study(metric="load_entropy").file.primary.unit == ""
    ratio = DeclaredContrast(metric="perplexity", contrast=("moge", "moe"), margin=1.0)
    assert ratio.unit == "%"
    assert ratio.model_copy(update={"over": "x", "scale": "log10"}).unit == "% per tenfold"


def test_the_digest_is_of_the_plan_and_not_of_its_table():
    digest = study().file.digest
    assert digest == study(split="test").file.digest
    assert digest != study(margin=0.6).file.digest

    def of(text):
        return parse_grid(text, "x").file.digest

    assert of(BASE) == of(BASE.replace("[top1_accuracy, load_entropy", "[load_entropy"))
    assert of(BASE) != of(BASE.replace("seeds: 2", "seeds: 3"))
    assert of(BASE.replace(", seeds: 2", "")) == of(BASE.replace("seeds: 2", "seeds: 3"))
