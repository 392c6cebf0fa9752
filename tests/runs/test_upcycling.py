"""A run that starts from the dense run of its settings and seed, trained before it or for it."""

import pytest
import torch
from safetensors.torch import load_file

from moge_bench.config import DENSE_RUN
from moge_bench.data.registry import find_data
from moge_bench.models.build import build_model
from moge_bench.presets import resolve
from moge_bench.runs.execute import execute_run
from moge_bench.runs.record import stable_part
from moge_bench.training.checkpoint import save_weights

pytestmark = pytest.mark.usefixtures("few_images")

CODE = {"commit": None, "dirty": None, "digest": "0"}
# A convolutional stem, which no checkpoint of transformers has.
SMALL = {"training.steps": 2, "training.batch_size": 8, "training.warmup_steps": 1,
         "model.patch_size": 14, "model.hidden_size": 16, "model.num_heads": 2, "model.depth": 2,
         "model.ffn_size": 16, "moe.blocks": [1], "moe.num_experts": 4, "moe.group.size": 2,
         "moe.top_k": 2, "moe.renormalize": True, "data.evaluate_test": False}  # fmt: skip
FROM_DENSE = {**SMALL, "model.upcycled_from": DENSE_RUN}


def config_of(method, settings, seed=0):
    return find_data(resolve("tiny-vit", method, settings, seed))


def execute(config, folder):
    record = execute_run(config, CODE, None, folder)
    assert record.error is None, record.error.traceback
    return record


def weights(folder):
    return sorted(path.name for path in folder.glob("weights/*"))


def test_the_dense_run_is_the_one_of_the_same_settings_and_seed():
    dense = config_of("dense", SMALL, seed=3)
    for method in ("dense", "moe", "moge"):
        assert config_of(method, FROM_DENSE, seed=3).dense_run.run_id == dense.run_id
    assert config_of("moge", FROM_DENSE).dense_run.run_id != dense.run_id
    ids = {config_of(m, s).run_id for m in ("dense", "moge") for s in (SMALL, FROM_DENSE)}
    assert len(ids) == 4
    kept = config_of("dense", {**SMALL, "training.keep_weights": True}, seed=3)
    assert kept.run_id == dense.run_id  # to keep weights changes no result


def test_trained_before_it_or_for_it(tmp_path):
    """One dense run a seed, made where it is missing; the records are equal."""
    keep = {"training.keep_weights": True}
    before, after = tmp_path / "before", tmp_path / "after"
    dense = config_of("dense", {**SMALL, **keep})
    execute(dense, before)
    (name,) = weights(before)
    assert name == f"{dense.run_id}-0.safetensors"
    records = [execute(config_of("moge", {**FROM_DENSE, **keep}), f) for f in (before, after)]
    assert weights(after) == [name]  # an MoE keeps none
    mine, theirs = (load_file(folder / "weights" / name) for folder in (before, after))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert stable_part(records[0]) == stable_part(records[1])
    scratch = execute(config_of("moge", SMALL), tmp_path / "scratch")
    assert scratch.metrics != records[0].metrics and weights(tmp_path / "scratch") == []


@pytest.mark.parametrize(("preset", "vocabulary"), [("tiny-vit", None), ("tiny-lm", 60)])
def test_it_begins_with_the_function_of_the_dense_run(preset, vocabulary, tmp_path):
    given = {"moe.top_k": 2, "moe.renormalize": True, "model.upcycled_from": DENSE_RUN}
    config = resolve(preset, "moge", given)
    dense = build_model(config.dense_run, vocabulary).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(2)
    save_weights(tmp_path / "w", dense)
    x = torch.randn(2, 1, 28, 28) if vocabulary is None else torch.randint(vocabulary, (2, 16))
    upcycled = build_model(config, vocabulary, tmp_path / "w").eval()
    with torch.no_grad():
        expected, found = dense(x).logits, upcycled(x).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def test_what_it_needs_is_said():
    record = execute_run(config_of("moge", FROM_DENSE), CODE, None)
    assert "needs a results folder to find it in" in record.error.message
    with pytest.raises(ValueError, match=r"'dense-run' is for one process.*name its weights"):
        config_of("moge", {**FROM_DENSE, "training.processes": 2})
    with pytest.raises(ValueError, match="'dense-run' needs the weights of that run"):
        build_model(config_of("moge", FROM_DENSE))
