import pytest

from moge_bench.config import RunConfig, field_paths
from moge_bench.presets import PRESETS, check_effect, resolve


def test_settings_a_method_lacks_do_not_change_the_run():
    dense = resolve("tiny-vit", "dense")
    assert resolve("tiny-vit", "dense", {"moe.num_experts": 8, "moe.group.size": 2}) == dense
    moe = resolve("tiny-vit", "moe")
    assert resolve("tiny-vit", "moe", {"moe.group.size": 2, "moe.group.weight": 9.0}) == moe


INIT = "model.expert_init_blocks"


def test_initial_values_that_are_not_drawn_do_not_change_the_run():
    moe = resolve("tiny-vit", "moe")
    assert moe.model.expert_init_blocks == ()
    assert resolve("tiny-vit", "moe", {INIT: [2, 3]}) == moe
    assert resolve("tiny-vit", "moe", {INIT: [1, 3]}).model.expert_init_blocks == (1,)
    loaded: dict = {"model.upcycled_from": "some/hub-name"}
    assert resolve("tiny-vit", "dense", loaded | {INIT: [1]}) == resolve(
        "tiny-vit", "dense", loaded
    )


@pytest.mark.parametrize(
    ("moved", "blocks"), [({}, (2, 3)), ({"moe.blocks": [3, 1]}, (1, 3)), ({INIT: [0]}, (0,)),
                          ({INIT: []}, ()), ({INIT: None}, (2, 3))],
)  # fmt: skip
def test_a_dense_run_starts_as_large_as_experts_where_the_others_are_moe(moved, blocks):
    dense = resolve("tiny-vit", "dense", moved)
    assert dense.model.expert_init_blocks == blocks
    # An upcycled run starts from the dense run of the same settings.
    upcycled = resolve("tiny-vit", "moe", moved | {"model.upcycled_from": "dense-run"})
    assert upcycled.dense_run.run_id == dense.run_id


def test_moge_differs_from_moe_in_the_group_alone():
    moge, moe = resolve("tiny-vit", "moge").model_dump(), resolve("tiny-vit", "moe").model_dump()
    assert moge["moe"].pop("group") is not None
    assert moe["moe"].pop("group") is None
    assert (moge.pop("method"), moe.pop("method")) == ("moge", "moe")
    assert moge == moe


FREE = sorted(name for name, preset in PRESETS.items() if not preset.for_one_method)


@pytest.mark.parametrize("preset", FREE)
@pytest.mark.parametrize("method", ["dense", "moe", "moge"])
def test_every_preset_resolves_and_survives_json(preset, method):
    config = resolve(preset, method, seed=3)
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.run_id == config.run_id


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("moe.num_expert", 8, "'moe.num_expert'; the nearest is 'moe.num_experts'"),
        ("trainin.steps", 8, "'trainin.steps'; the nearest is 'training.steps'"),
        ("moe.num_experts", 0, "moe.num_experts must be at least 1, got 0"),
        ("moe.top_k", 65, "top_k=65 exceeds num_experts=64"),
        ("moe.group", {"size": 9, "border": "valid"}, "group_size=9 does not fit the 8x8 map"),
        ("moe.group.border", "wrap", "moe.group.border must be 'valid' or 'torus', got 'wrap'"),
        ("moe.group.sigma.end", 0, "moe.group.sigma.end must be above 0, got 0"),
        (INIT, [4], r"model.expert_init_blocks=.4,. must name blocks 0 to 3"),
        (INIT, "all", "model.expert_init_blocks must be a list"),
        (INIT, 3, "model.expert_init_blocks must be a list"),
        ("moe.blocks", 3, "moe.blocks must be a list"),
        ("moe", 3, "'moe' is a section, not a setting"),
        ("moe.blocks", [4], "moe.blocks=.4,. must name blocks 0 to 3"),
        ("model.patch_size", 5, "patch_size=5 must divide image_size=28"),
        ("training.steps", "many", "training.steps must be a whole number, got 'many'"),
    ],
)
def test_errors_name_field_value_and_nearest(path, value, message):
    with pytest.raises(ValueError, match=message):
        resolve("tiny-vit", "moge", {path: value})


def test_unknown_preset_and_method():
    with pytest.raises(ValueError, match="'tiny-vot'; the nearest is 'tiny-vit'"):
        resolve("tiny-vot")
    with pytest.raises(ValueError, match="'mogo'; the nearest is 'moge'"):
        resolve("tiny-vit", "mogo")


def test_field_paths_lists_branches_and_leaves():
    assert field_paths({"a": {"b": 1}, "c": 2}) == ["a", "a.b", "c"]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("moe", {"expert_init_blocks": [1, 2]}, r"=\(1, 2\) must name blocks with a dense FFN, and "
         r"moe.blocks=\(2, 3\) have none"),
        ("dense", {"expert_init_blocks": [1], "upcycled_from": "a/b"}, r"=\(1,\) would have no "
         "effect: the weights are those of model.upcycled_from='a/b'"),
    ],
)  # fmt: skip
def test_initial_values_of_what_is_not_drawn_are_refused(method, changes, message):
    values = resolve("tiny-vit", method).model_dump(mode="json")
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({**values, "model": {**values["model"], **changes}})


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("moe", {INIT: [2, 3]}, r"=\[2, 3\] would have no effect on blocks \[2, 3\]: method='moe'"),
        ("moe", {INIT: [1, 3]}, r"no effect on blocks \[3\]"),
        ("dense", {INIT: ["2"]}, None),
        ("dense", {"moe.blocks": [1, 3]}, None),
        ("dense", {"moe.blocks": [1, 3], INIT: [2]}, "moe.blocks=.* would have no effect"),
        ("dense", {"moe.top_k": 2}, "moe.top_k=2 would have no effect"),
    ],
)
def test_one_run_asks_for_nothing_without_effect(method, overrides, message):
    config = resolve("tiny-vit", method, overrides)
    if message is None:
        check_effect(config, overrides)
    else:
        with pytest.raises(ValueError, match=message):
            check_effect(config, overrides)


def test_a_dense_model_of_another_depth_has_those_of_its_blocks():
    assert resolve("tiny-vit", "dense", {"model.depth": 3}).model.expert_init_blocks == (2,)
    shallow = resolve("tiny-swin", "dense", {"model.depths": [1, 1]})
    assert shallow.model.expert_init_blocks == (1,)


@pytest.mark.parametrize("method", ["dense", "moe"])
def test_blocks_that_are_no_list_are_refused_by_every_method(method):
    with pytest.raises(ValueError, match=r"moe\.blocks must be a list"):
        resolve("tiny-vit", method, {"moe.blocks": "all"})


def test_an_unfair_preset_is_for_its_method_alone():
    assert resolve("vmoe-s16-unfair").method == "moe"
    with pytest.raises(
        ValueError, match=r"'vmoe-s16-unfair' is for method 'moe' alone.*'vmoe-s16'"
    ):
        resolve("vmoe-s16-unfair", "moge")
