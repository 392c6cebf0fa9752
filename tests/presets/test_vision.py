"""The vision presets: the settings of docs/method.md "Systems" and "Official settings"."""

import csv
import re
from pathlib import Path

import pytest
from image_samples import write_folder

from moge_bench.config import GroupConfig
from moge_bench.config.models import ImageBackboneConfig
from moge_bench.presets import PRESETS, resolve
from moge_bench.presets.smoe import on_token_mean
from moge_bench.training.loop import train

PUBLISHED = Path(__file__).parents[2] / "results" / "published_results.csv"
# MoE and MoGE of one system, its dense twin, and the names of the official scales.
SYSTEMS = {
    "vmoe-s16": ("vmoge-s16", "vmoe-s16-dense"),
    "swinv2-moe-t12": ("swinv2-moge-t12", "swinv2-t12-dense"),
    "vit-s16-upcycled": ("vit-s16-upcycled-moge", "vit-s16-dense"),
    "swin-t7-upcycled": ("swin-t7-upcycled-moge", "swin-t7-dense"),
}
# lambda and sigma of the page; tokens on a device, of an image where the strength is stated.
OFFICIAL = {
    "vmoe-s16": (0.005, 0.003, 256, 197),
    "swinv2-moe-t12": (0.4, 0.003, 256, 144),
    "vit-s16-upcycled": (4e-5, 3e-5, 64, 197),
    "swin-t7-upcycled": (4e-5, 3e-5, 64, 196),
}


def is_large_vision(preset):
    model = preset.system.model
    return isinstance(model, ImageBackboneConfig) and model.image_size > 28


@pytest.mark.parametrize("name", SYSTEMS)
def test_moe_and_moge_differ_in_the_group_loss_alone(name):
    moge, dense = SYSTEMS[name]
    plain, grouped = resolve(name).model_dump(), resolve(moge).model_dump()
    assert grouped["moe"].pop("group") is not None and plain["moe"].pop("group") is None
    assert (plain.pop("method"), grouped.pop("method")) == ("moe", "moge")
    assert plain == grouped
    twin = resolve(dense).model_dump()
    assert twin.pop("moe") is None and twin.pop("method") == "dense"
    # Its FFNs start from the distribution of the experts that they stand for.
    blocks = () if plain["model"]["upcycled_from"] else plain["moe"]["blocks"]
    assert twin["model"].pop("expert_init_blocks") == blocks
    assert plain["model"].pop("expert_init_blocks") == ()
    assert {key: plain[key] for key in twin} == twin


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("scale", ["submitted", "released"])
def test_official_settings(name, scale):
    moge, _ = SYSTEMS[name]
    submitted, released, images, _ = OFFICIAL[name]
    group = resolve(f"{moge}-{scale}").moe.group
    sigma = (10, 0.5, 0.3) if scale == "submitted" else (10, 1, 0.2)
    assert (group.sigma.start, group.sigma.end, group.sigma.gamma) == sigma
    assert group.weight == (submitted if scale == "submitted" else released)
    assert (group.reduction, group.size, group.stride) == ("official_image", 3, 1)
    assert group.border == "valid"
    # The scale and the group are all that differs from the preset of the token mean.
    twin, official = resolve(moge).model_dump(), resolve(f"{moge}-{scale}").model_dump()
    per_step = official["training"].pop("gradient_accumulation")
    assert twin["training"].pop("gradient_accumulation") == 1
    assert official["training"]["batch_size"] // per_step == images
    for values in (twin, official):
        values["moe"].pop("group"), values.pop("preset")
    assert twin == official


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_token_mean_has_the_strength_of_the_released_sum(name):
    moge, _ = SYSTEMS[name]
    _, released, images, tokens = OFFICIAL[name]
    official = GroupConfig(weight=released, reduction="official_image")
    assert resolve(moge).moe.group == on_token_mean(official, images * tokens)
    # aux_weight lambda T / h^2: V-MoGE 0.01 * 0.003 * 256 * 197 / 9 = 0.168, SwinV2 0.123.
    strength = 0.01 * resolve(moge).moe.group.weight
    published = {"vmoe-s16": 0.168, "swinv2-moe-t12": 0.123, "vit-s16-upcycled": 4.2e-4}
    if name in published:
        assert strength == pytest.approx(published[name], rel=0.013)


@pytest.mark.parametrize("name", SYSTEMS)
def test_moe_layers_of_the_method(name):
    moe = resolve(name).moe
    assert (moe.num_experts, moe.top_k, moe.renormalize) == (32, 1, False)
    assert (moe.capacity_factor, moe.batch_priority, moe.noise) == (4.0, True, True)
    assert (moe.balance, moe.aux_weight) == ("vmoe", 0.01)
    assert moe.blocks == ((5, 7) if name == "vmoe-s16" else (9, 11))
    assert moe.dropout == (0.0 if name == "vmoe-s16" else 0.1)


def test_last_blocks_of_stages_3_and_4():
    # 2 + 2 + 6 = 10 blocks in stages 1 to 3, the last of them is 9; 12 in all.
    model = resolve("swinv2-moe-t12").model
    assert (model.depths, model.num_heads) == ((2, 2, 6, 2), (3, 6, 12, 24))
    assert (model.window_size, model.image_size, model.drop_path) == (12, 192, 0.2)
    # Block 5 of stage 3 and block 1 of stage 4, from 0: 2 + 2 + 5 and 10 + 1.
    assert resolve("swin-t7-upcycled").moe.blocks == (9, 11)
    assert resolve("swin-t7-upcycled").model.window_size == 7


@pytest.mark.parametrize("name", SYSTEMS)
def test_recipe_of_the_method(name):
    config = resolve(name)
    data, training = config.data, config.training
    assert (data.name, data.flip, data.rand_augment, data.erasing) == ("imagenet-1k", True, 9, 0.25)
    assert (data.mixup, data.cutmix, data.resized_crop) == (0.8, 1.0, 0.08)
    assert (training.label_smoothing, training.clip_norm, training.schedule) == (0.1, 5, "cosine")
    assert (training.beta1, training.beta2) == (0.9, 0.999)
    if "upcycled" in name:
        # 1,281,167 // 256 = 5,004 steps an epoch; 2e-5 for 512 images.
        assert (training.steps, training.warmup_steps) == (30 * 5004, 5 * 5004)
        assert (training.batch_size, training.learning_rate) == (256, 2e-5 * 256 / 512)
        assert config.model.upcycled_from
    else:
        # 1,281,167 // 1024 = 1,251 steps an epoch.
        assert (training.steps, training.warmup_steps) == (150 * 1251, 15 * 1251)
        assert (training.batch_size, training.learning_rate) == (1024, 1e-3)
        assert (training.final_learning_rate, training.weight_decay) == (1e-5, 0.05)


@pytest.mark.parametrize("name", [name for pair in SYSTEMS.items() for name in (pair[0], *pair[1])])
def test_what_nobody_has_measured_is_said_to_be_unknown(name):
    preset = PRESETS[name]
    assert preset.reaches.startswith("not known") and preset.cost.startswith("not measured")
    # The number beside it is a published one: 81.4 of 81.402.
    (number,) = re.findall(r"([\d.]+) % top-1", preset.reaches)
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        values = [row["value"] for row in csv.DictReader(file)]
    assert any(value.startswith(number) for value in values)


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.name for p in PRESETS.values() if is_large_vision(p)])
def test_two_steps_with_images_of_full_size(name, tmp_path):
    folder = write_folder(tmp_path, per_class=2, side=60, suffix=".jpg")
    settings = {
        "data.name": str(folder), "data.mean": [0.5], "data.std": [0.25], "data.workers": 0,
        "model.upcycled_from": None, "training.batch_size": 2, "training.steps": 2,
        "training.warmup_steps": 1, "training.gradient_accumulation": 1,
    }  # fmt: skip
    config = resolve(name, None, settings)
    found = train(config)
    assert found.diverged_at is None
    assert len(found.routing) == (0 if config.moe is None else 4)  # two layers, two splits
    assert all(0 <= layer["dropped_share"] < 1 for layer in found.routing)
    assert found.parameters["total"] > (2e7 if config.moe is None else 9e7)
