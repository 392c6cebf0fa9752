"""A run's name: fixed for the records that are committed, and stable under new settings."""

import json
from pathlib import Path
from typing import Literal

import pytest

from moge_bench.config import RECORDED, MoEConfig, RunConfig
from moge_bench.config.identity import added, digest_of, hashed_settings, migrate
from moge_bench.presets import resolve

RUNS = Path(__file__).parents[2] / "results/runs"

# Ids of committed records, written out: what changes one of them orphans evidence.
COMMITTED = [
    (("tiny-vit", "dense", {}, 0), "1676a90e367d8ae4"),
    (("tiny-vit", "moe", {}, 1), "246653bca68d007f"),
    (("tiny-vit", "moge", {}, 2), "d5fcd6801f9e1e73"),
    (
        ("tiny-vit", "moge", {"moe.num_experts": 32, "moe.top_k": 2, "moe.group.size": 2}, 0),
        "58f12c7eabf39589",
    ),
    (("tiny-lm", "moe", {"training.steps": 300}, 0), "b9f020aff6493897"),
    (
        ("tiny-lm", "moge", {"training.steps": 300, "moe.residual.kind": "momentum"}, 1),
        "8ed134c186eb46a1",
    ),
]


@pytest.mark.parametrize(("arguments", "run_id"), COMMITTED)
def test_ids_of_committed_records(arguments, run_id):
    record = json.loads((RUNS / run_id[:2] / f"{run_id}.json").read_text())
    assert RunConfig.model_validate(record["settings"], context=RECORDED).run_id == run_id
    assert record["seed"] == arguments[-1]


# What the presets were when those records were made, where they are something else today.
THEN: dict[str, dict] = {
    "tiny-vit": {
        "model.stem": "patch", "moe.num_experts": 16, "moe.group.border": "valid",
        "moe.group.weight": 4.0, "data.name": "fashion-mnist-subset", "data.flip": False,
        "data.crop_padding": 0, "training.steps": 300, "training.warmup_steps": 40,
        "training.label_smoothing": 0.0, "model.expert_init_blocks": [],
    },
    "tiny-lm": {
        "model.dropout": 0.0, "model.attention_dropout": None, "moe.num_experts": 16,
        "moe.group.border": "valid", "moe.group.weight": 0.03, "training.learning_rate": 0.002,
        "training.warmup_steps": 40,
    },
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "run_id"), COMMITTED)
def test_the_settings_of_then_still_lead_to_them(arguments, run_id):
    preset, method, overrides, seed = arguments
    assert resolve(preset, method, {**THEN[preset], **overrides}, seed).run_id == run_id


def test_the_hash_is_that_of_the_settings_as_json():
    # SHA-256 of '{"a":1,"b":[2.5,null]}', first 16 digits, by sha256sum.
    assert digest_of({"b": [2.5, None], "a": 1}) == "fbb68c4db7e0dd9e"


class WiderMoE(MoEConfig):
    warm_gate: Literal["off", "on"] = added("on", before="off")


class WiderRun(RunConfig):
    moe: WiderMoE | None = None
    warm_restart: bool = added(False, before=False)


def test_a_new_setting_leaves_every_id_where_it_is_as_before():
    config = resolve("tiny-vit", "moge")
    values = config.model_dump()
    values["moe"]["warm_gate"] = "off"
    assert WiderRun.model_validate(values).run_id == config.run_id
    # Its default is another behaviour: then the id is another too.
    del values["moe"]["warm_gate"]
    assert WiderRun.model_validate(values).run_id != config.run_id
    values["moe"]["warm_gate"] = "off"
    assert WiderRun.model_validate(values | {"warm_restart": True}).run_id != config.run_id


def test_a_record_from_before_a_setting_is_read_as_it_ran():
    config = resolve("tiny-vit", "moge")
    values = config.model_dump(mode="json")  # it has no warm_gate and no warm_restart
    read = WiderRun.model_validate(values, context=RECORDED)
    assert (read.moe.warm_gate, read.warm_restart) == ("off", False)
    assert read.run_id == config.run_id
    # Not a record, a run that is asked for: the default of today.
    assert WiderRun.model_validate(values).moe.warm_gate == "on"


def test_the_name_of_the_preset_is_not_hashed_and_the_device_is():
    config = resolve("tiny-vit", "moe")
    assert config.model_copy(update={"preset": "renamed"}).run_id == config.run_id
    assert config.model_copy(update={"device": "cuda"}).run_id != config.run_id
    assert "device" not in hashed_settings(config)  # cpu: as it was before there was a choice


def test_an_arm_is_a_run_without_its_seed():
    first, second = (resolve("tiny-vit", "moe", seed=seed) for seed in (0, 1))
    assert first.arm_id == second.arm_id
    assert first.run_id != second.run_id
    assert resolve("tiny-vit", "dense").arm_id != first.arm_id


def old_record(config):
    settings = config.model_dump(mode="json")
    del settings["device"], settings["data"]["digest"]
    return {
        "schema_version": 1, "hash": digest_of(settings), "config": settings, "status": "finished",
        "seed": config.seed, "device": "cpu", "code": {}, "speed": {"quick": {}},
    }  # fmt: skip


def test_a_record_of_schema_1_becomes_one_of_schema_2():
    config = resolve("tiny-vit", "moe", seed=3)
    record = migrate(old_record(config))
    assert record["schema"] == 2
    assert RunConfig.model_validate(record["settings"]) == config
    assert not {"hash", "config", "speed", "schema_version"} & record.keys()
    assert migrate(record) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash": "0" * 16}, "its hash '0000000000000000' is not that of its config"),
        ({"schema_version": 3}, "schema 3 and this version reads up to 2"),
        ({"schema_version": None}, "it has schema None; schemas 1 to 2 are known"),
    ],
)
def test_what_cannot_be_migrated_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        migrate(old_record(resolve("tiny-vit", "moe")) | change)


def test_an_old_record_that_lacks_a_field_is_named():
    record = old_record(resolve("tiny-vit", "moe"))
    del record["seed"]
    with pytest.raises(ValueError, match="it has schema 1 and lacks seed"):
        migrate(record)
