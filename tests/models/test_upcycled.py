"""A run that starts from a dense checkpoint in transformers' format."""

import pytest
import torch

from moge_bench.data.registry import find_data
from moge_bench.models.build import build_model
from moge_bench.presets import resolve

SMALL = {"moe.num_experts": 4, "moe.top_k": 2, "moe.renormalize": True, "moe.group.size": 2}
VIT = {**SMALL, "model.stem": "patch"}
CASES = {
    "tiny-vit": (VIT, lambda: torch.randn(2, 1, 28, 28), None),
    "tiny-swin": (SMALL, lambda: torch.randn(2, 1, 28, 28), None),
    "tiny-swinv2": (SMALL, lambda: torch.randn(2, 1, 28, 28), None),
    "tiny-lm": (SMALL, lambda: torch.randint(300, (2, 16)), 300),
}


def logits(model, x):
    with torch.no_grad():
        return model.eval()(x).logits


def build(preset, method, settings, seed=0):
    return build_model(resolve(preset, method, settings, seed), CASES[preset][2])


@pytest.mark.parametrize("preset", CASES)
def test_an_upcycled_model_computes_what_the_dense_one_computes(preset, tmp_path):
    settings, draw, _ = CASES[preset]
    dense = build(preset, "dense", settings, seed=1)
    with torch.no_grad():  # so that the FFNs matter
        for parameter in dense.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    dense.save_pretrained(tmp_path)
    x = draw()
    expected = logits(dense, x)
    given = {**settings, "model.upcycled_from": str(tmp_path)}
    for method in ("dense", "moe", "moge"):
        found = logits(build(preset, method, given), x)
        bound = 2e-5 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    # Not so from scratch.
    assert (logits(build(preset, "moe", settings), x) - expected).abs().max() > 0.01


def save_vit(path, **settings):
    build("tiny-vit", "dense", {**VIT, **settings}, seed=1).save_pretrained(path)
    return {**VIT, "model.upcycled_from": str(path)}


def test_routers_are_fresh_and_of_the_seed(tmp_path):
    given = save_vit(tmp_path)
    name = "vit.layers.2.mlp.layer.router.gate.weight"
    scratch = build("tiny-vit", "moe", VIT).state_dict()[name]
    assert torch.equal(build("tiny-vit", "moe", given).state_dict()[name], scratch)
    assert not torch.equal(build("tiny-vit", "moe", given, seed=1).state_dict()[name], scratch)


def test_a_head_of_other_classes_stays_fresh(tmp_path):
    given = save_vit(tmp_path, **{"model.num_classes": 7})
    model, fresh = build("tiny-vit", "dense", given), build("tiny-vit", "dense", VIT)
    assert torch.equal(model.classifier.weight, fresh.classifier.weight)
    name = "vit.embeddings.cls_token"
    assert not torch.equal(model.state_dict()[name], fresh.state_dict()[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.num_heads": 8}, "has num_attention_heads=8, and model.num_heads says 4"),
        ({"model.activation": "relu"}, "has hidden_act='relu', and model.activation says 'gelu'"),
        ({"model.hidden_size": 32}, r"has no .* of the shape \(.*\) \(\d+ weights differ\)"),
        ({"model.depth": 3, "moe.blocks": [1]}, "num_hidden_layers=3, and model.depth says 4"),
        ({"model.depth": 5}, "num_hidden_layers=5, and model.depth says 4"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, changed, message):
    given = save_vit(tmp_path, **changed)
    with pytest.raises(ValueError, match=message):
        build("tiny-vit", "moe", given)


@pytest.mark.parametrize(
    ("preset", "changed", "message"),
    [
        ("tiny-swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings=True, and the"),
        ("tiny-swinv2", {"pretrained_window_sizes": [6, 6]}, r"pretrained_window_sizes=\[6, 6\]"),
        ("tiny-lm", {"scale_attn_weights": False}, "scale_attn_weights=False, and the model here"),
        ("tiny-lm", {"tie_word_embeddings": False}, "tie_word_embeddings=False, and the model"),
        ("tiny-lm", {"add_cross_attention": True}, "crossattention.* no place here"),
    ],
)
def test_a_checkpoint_that_computes_something_else_is_refused(tmp_path, preset, changed, message):
    """Nothing of it shows in the weights that both have."""
    settings, _, _ = CASES[preset]
    dense = build(preset, "dense", settings)
    for name, value in changed.items():
        setattr(dense.config, name, value)
    type(dense)(dense.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(preset, "moe", {**settings, "model.upcycled_from": str(tmp_path)})


def test_a_home_folder_may_be_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = save_vit(tmp_path / "dense")
    name = "vit.embeddings.cls_token"
    short = {**given, "model.upcycled_from": "~/dense"}
    loaded, expected = (build("tiny-vit", "moe", each).state_dict() for each in (short, given))
    assert torch.equal(loaded[name], expected[name])


def test_a_checkpoint_that_is_not_there(tmp_path):
    for name in (str(tmp_path / "gone"), "no-owner"):
        config = resolve("tiny-vit", "moe", {**VIT, "model.upcycled_from": name})
        with pytest.raises(ValueError, match="is neither a folder nor a hub name"):
            find_data(config)
    config = resolve("tiny-vit", "moe", {**VIT, "model.upcycled_from": str(tmp_path)})
    with pytest.raises(ValueError, match=r"must hold config.json and model.safetensors"):
        find_data(config)


def test_other_weights_in_the_folder_are_another_run(tmp_path):
    config = resolve("tiny-vit", "moe", save_vit(tmp_path))
    first = find_data(config).run_id
    assert first != config.run_id
    build("tiny-vit", "dense", VIT, seed=2).save_pretrained(tmp_path)
    assert find_data(config).run_id != first
