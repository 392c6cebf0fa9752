import itertools
from pathlib import Path

import pytest
import yaml

from moge_bench.study.grid import default_grid_path, load_grid, parse_grid

GRIDS = sorted((Path(__file__).parents[2] / "ablations").glob("*.yaml"))


def flatten(values, prefix=""):
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(a, b):
    a, b = flatten(a.model_dump(mode="json")), flatten(b.model_dump(mode="json"))
    return {name for name in a.keys() | b.keys() if a.get(name, "absent") != b.get(name, "absent")}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_arms_differ_only_in_their_declared_axes(path):
    """The test that guards every table: no hidden difference between arms that are compared."""
    grid = load_grid(path)
    runs = [(arm.coordinates[0], config) for arm in grid.arms for config in arm.configs]
    for (at_a, a), (at_b, b) in itertools.combinations(runs, 2):
        if at_a.get("preset") != at_b.get("preset"):
            continue  # of different systems, which no contrast compares
        allowed = {"seed"} if a.seed != b.seed else set()
        allowed |= {axis for axis in at_a if at_a[axis] != at_b[axis]}
        for difference in differences(a, b) - allowed:
            # The method decides which of the blocks `moe` and `moe.group` there are at all.
            assert at_a.get("method") != at_b.get("method"), difference
            # Where they have none, FFNs start from values as large as those of experts.
            if difference.startswith("model.expert_init_blocks"):
                assert "dense" in (at_a.get("method"), at_b.get("method"))
                continue
            assert difference == "moe" or difference.startswith("moe."), difference
            if {at_a.get("method"), at_b.get("method")} == {"moe", "moge"}:
                assert difference.startswith("moe.group"), difference


def test_combinations_that_compute_the_same_are_one_arm(tiny_grid):
    # 3 methods * 2 experts * 2 sizes = 12 combinations; arms: dense 1, moe 2, moge 4; 2 seeds.
    combinations = [c for arm in tiny_grid.arms for c in arm.coordinates]
    assert len(combinations) == 12
    assert len(tiny_grid.configs) == 2 * (1 + 2 + 4)
    # Seed after seed, so that what a killed study has done is balanced.
    assert [config.seed for config in tiny_grid.configs] == [0] * 7 + [1] * 7
    assert [len(arm.coordinates) for arm in tiny_grid.arms] == [4, 2, 2, 1, 1, 1, 1]
    assert len({run_id for arm in tiny_grid.arms for run_id in arm.run_ids}) == 14


def test_expansion_is_the_same_every_time(tiny_text):
    first, second = (parse_grid(tiny_text, "x").arms for _ in range(2))
    assert first == second


def test_impossible_combinations_can_be_skipped(tiny_text):
    impossible = tiny_text.replace("size: [1, 2]", "size: [1, 3]")
    with pytest.raises(ValueError, match=r"does not fit the 2x2 map.*left out with `skip:`"):
        parse_grid(impossible, "x")
    skip = "skip: [{method: moge, moe.num_experts: 4, moe.group.size: 3}]\ntable:"
    grid = parse_grid(impossible.replace("table:", skip), "x")
    # One of the four arms of moge is gone: 9 experts with h = 1 and 3, 4 experts with h = 1.
    assert len(grid.arms) == 1 + 2 + 3


def test_a_preset_may_be_an_axis(tiny_text):
    text = tiny_text.replace("  preset: tiny-vit\n", "").replace(
        "axes:", "axes:\n  preset: [tiny-vit, tiny-swin]"
    ).replace("rows: [", "rows: [preset, ")  # fmt: skip
    grid = parse_grid(text, "x")
    # dense 1, moe 2, moge 4 of each, as without; 2 seeds.
    assert len(grid.configs) == 2 * 2 * 7
    for arm in grid.arms:
        assert {config.preset for config in arm.configs} == {arm.coordinates[0]["preset"]}
    with pytest.raises(ValueError, match=r"axes\.preset: no preset is called 'tiny-vot'; the near"):
        parse_grid(text.replace("[tiny-vit, tiny-swin]", "[tiny-vot]"), "x")
    with pytest.raises(ValueError, match=r"axes: no setting is called 'model\.depth'"):
        parse_grid(text.replace("moe.num_experts", "model.depth"), "x")  # a Swin has depths


def test_a_number_of_seeds_means_the_first_ones(tiny_text):
    grid = parse_grid(tiny_text.replace("seeds: [0, 1]", "seeds: 4"), "x")
    assert grid.file.base.seeds == (0, 1, 2, 3)
    assert parse_grid(tiny_text.replace("  seeds: [0, 1]\n", ""), "x").file.base.seeds == (0, 1, 2)


def test_a_method_may_be_held_fixed(tiny_text):
    text = tiny_text.replace("preset: tiny-vit", "preset: tiny-vit\n  method: moe")
    with pytest.raises(ValueError, match=r"axes\.method: it is held fixed in base too"):
        parse_grid(text, "x")
    text = text.replace("  method: [dense, moe, moge]\n", "").replace("size, method]", "size]")
    assert {config.method for config in parse_grid(text, "x").configs} == {"moe"}


def test_shorthands_of_the_base_reach_the_config(tiny_grid):
    config = tiny_grid.configs[0]
    assert config.data.name == "fashion-mnist-subset"
    assert config.training.steps == 3
    assert {config.seed for config in tiny_grid.configs} == {0, 1}


def test_the_embedded_grid_is_the_one_in_ablations():
    assert default_grid_path().read_bytes() == (GRIDS[0].parent / "quick.yaml").read_bytes()


def broken(tiny_text, change):
    values = yaml.safe_load(tiny_text)
    change(values)
    return yaml.safe_dump(values, sort_keys=False)


def setter(*path_and_value):
    *path, leaf, value = path_and_value

    def change(values):
        for name in path:
            values = values[name]
        values[leaf] = value

    return change


BROKEN = [
    (setter("axis", {}), "no field is called 'axis'; the nearest is 'axes'"),
    (setter("base", "sedes", [0]), r"no field is called 'base\.sedes'; the nearest is 'seeds'"),
    (setter("table", "metric", []), r"'table\.metric'; the nearest is 'metrics'"),
    (setter("base", "preset", "tiny-vot"), "'tiny-vot'; the nearest is 'tiny-vit'"),
    (
        setter("table", "metrics", []),
        r"table\.metrics must be a list of at least 1.*, got \(\)|\[\]",
    ),
    (setter("table", "splits", []), r"table\.splits must be a list of at least 1"),
    (setter("base", "seeds", []), r"base\.seeds must be a list of at least 1 .*, got \(\)|\[\]"),
    (
        setter("base", "seeds", [2**32]),
        r"base\.seeds: seeds go from 0 to 4294967295, got",
    ),
    (
        setter("base", "set", {"moe": None}),
        "'moe' is a section, not a setting; got None",
    ),
    (setter("base", "set", {"seed": 7}), "no setting is called 'seed'|'seed' cannot be set so"),
    (setter("base", "set", {"method": "moe"}), r"axes\.method: it is held fixed in base too"),
    (
        setter("base", "set", {"training.clip_norm": float("inf")}),
        "clip_norm must be a finite number, got inf",
    ),
    (setter("base", "set", {"moe.blocks": [2, 2]}), "moe.blocks: every block may be named once"),
    (
        setter("base", "set", {"training.gradient_accumulation": 3}),
        "batch_size=.* must be a multiple of gradient_accumulation=3",
    ),
    (setter("skip", [{"moe.num_experts": 5}]), r"skip\.0: moe\.num_experts has no value 5"),
    (
        setter("skip", [{"moe.experts": 4}]),
        r"skip\.0: no axis is called 'moe\.experts'",
    ),
    (setter("skip", [{"moe.group.size": 1}, {"moe.group.size": 2}]), "skip leaves no combination"),
    (setter("base", "seeds", [0, 0]), r"base\.seeds: a seed is named twice: \[0, 0\]"),
    (setter("base", "data", "fashion-mnist10"), "'fashion-mnist10'; the nearest is 'fashion-mnist"),
    (
        setter("base", "set", {"training.step": 4}),
        "'training.step'; the nearest is 'training.steps'",
    ),
    (setter("axes", "method", []), r"axes\.method has no values"),
    (setter("axes", "method", ["moe", "moe"]), r"axes\.method names a value twice"),
    (
        setter("axes", "method", ["moe", "mog"]),
        r"axes\.method: no method is called 'mog'; the nearest is 'moge'",
    ),
    (
        setter("axes", "moe.num_experts", [4, 0]),
        r"at .*moe\.num_experts=0.*moe\.num_experts must be at least 1, got 0",
    ),
    (setter("axes", "moe.group.size", [1, 3]), "at method=moge, moe.num_experts=4.*does not fit"),
    (setter("table", "rows", ["method"]), "must name every axis once"),
    (setter("table", "rows", ["methods"]), "table.rows: no axis is called 'methods'; the nearest"),
    (setter("table", "metrics", ["top1"]), "table.metrics: no metric is called 'top1'"),
    (setter("name", "../escape"), "name must be text that matches .*, got '../escape'"),
    (setter("axes", "seed", [1]), "no setting is called 'seed'|axes.seed: not an axis"),
    (setter("axes", "preset", ["tiny-lm"]), "preset must stand under base or be an axis, one of"),
    (setter("axes", "training.steps", [1, 2]), "training.steps: it is held fixed in base too"),
    (
        setter("axes", "moe.num_expert", [4]),
        "axes: .*'moe.num_expert'; the nearest is 'moe.num_exp",
    ),
    (setter("axes", "moe.group.size", [1, "1"]), "axes.moe.group.size names a value twice"),
    (setter("table", "splits", "tst"), "table.splits: no split is called 'tst'; .* 'test'"),
    (setter("base", "set", {"data.evaluate_test": False}), "table.splits shows the test split"),
    (
        setter("table", "published", {"dense": "Swin-T dense, 224 px"}),
        "no published result is called 'Swin-T dense, 224 px'; the nearest is 'Swin-T dense",
    ),
    (setter("table", "published", {"mog": "Swin-T dense, 224 px 1K"}), "no method is called 'mog'"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_files_name_the_field_and_the_nearest(tiny_text, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_grid(broken(tiny_text, change), "tiny.yaml")
    assert str(caught.value).startswith("tiny.yaml: ")


def test_a_repeated_key_is_not_quietly_dropped(tiny_text):
    with pytest.raises(ValueError, match=r"tiny\.yaml: 'method' stands twice, again in line 15"):
        parse_grid(tiny_text.replace("axes:\n", "axes:\n  method: [moe]\n"), "tiny.yaml")


def test_keys_are_words():
    with pytest.raises(ValueError, match=r"x\.yaml: line 1: a key must be a word.*needs quotes"):
        parse_grid("name: {{ name }}", "x.yaml")


def test_not_yaml_and_not_a_mapping(tmp_path):
    with pytest.raises(ValueError, match=r"x\.yaml: not YAML: "):
        parse_grid("a: [", "x.yaml")
    with pytest.raises(ValueError, match=r"x\.yaml: a grid file is a mapping.*got list"):
        parse_grid("- a", "x.yaml")
    with pytest.raises(ValueError, match=r"grid file .*none\.yaml cannot be read"):
        load_grid(tmp_path / "none.yaml")


def test_words_that_yaml_reads_as_other_things_stay_words(tiny_text):
    text = tiny_text.replace("name: tiny", "name: 2024").replace("question: Does it run?",
                                                                 "question: no")  # fmt: skip
    text = text.replace("method: [dense, moe, moge]", "training.precision: [no, bf16]")
    text = text.replace("moe.group.size, method]", "moe.group.size, training.precision]")
    grid = parse_grid(text, "g")
    assert (grid.file.name, grid.file.question) == ("2024", "no")
    assert grid.file.axes["training.precision"] == ("no", "bf16")
    assert {c.training.precision for c in grid.configs} == {"no", "bf16"}
    # A setting that is no string keeps YAML's reading.
    text = text.replace("training.precision", "moe.renormalize").replace("bf16", "yes")
    assert {c.moe.renormalize for c in parse_grid(text, "g").configs} == {False, True}


def test_a_misspelt_value_is_the_fault_of_its_axis_and_not_of_a_contrast(tiny_text):
    """The contrast names a value that the axis has lost to a slip of the pen."""
    text = "primary: {metric: top1_accuracy, contrast: [moge, moe], margin: 1}\n" + tiny_text
    assert parse_grid(text, "x").file.primary is not None
    slip = text.replace("method: [dense, moe, moge]", "method: [dense, mo, moge]")
    with pytest.raises(
        ValueError, match=r"^x: axes\.method: no method is called 'mo'; the nearest"
    ):
        parse_grid(slip, "x")
    by_border = text.replace("    moe.group.border: valid\n", "").replace(
        "contrast: [moge, moe]", "axis: moe.group.border, contrast: [torus, valid]"
    )
    by_border = by_border.replace(
        "  moe.group.size: [1, 2]\n", "  moe.group.border: [tours, valid]\n"
    )
    by_border = by_border.replace("moe.group.size, method]", "moe.group.border, method]")
    with pytest.raises(
        ValueError, match=r"moe\.group\.border must be 'valid' or 'torus', got 'tours'"
    ):
        parse_grid(by_border, "x")


def test_what_only_some_arms_lack_may_be_asked_for(tiny_text):
    """Dense arms have no dose: a dash. Of a study of dense arms alone no table would have it."""
    text = tiny_text.replace("top1_accuracy, peak", "top1_accuracy, dose, peak")
    assert parse_grid(text, "x").file.table.metrics[1] == "dose"
    alone = text.replace("[dense, moe, moge]", "[dense]")
    with pytest.raises(
        ValueError, match="dose is a number of MoE layers, and no run of this study"
    ):
        parse_grid(alone, "x")


def test_bits_per_byte_need_a_tokenizer_that_keeps_the_text():
    text = """
name: words
question: How many bits?
base: {preset: tiny-lm, set: {data.tokenizer: words}}
axes: {method: [moe]}
table: {rows: method, metrics: bits_per_byte}
"""
    with pytest.raises(ValueError, match=r"bits_per_byte cannot be told .*'words'"):
        parse_grid(text, "x")
    assert parse_grid(text.replace("words}", "bytes}"), "x")
