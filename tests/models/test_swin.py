import pytest
import torch

from moge_bench.config import build_config
from moge_bench.models.build import build_model, ffns_of
from moge_bench.models.swin import drop_path
from moge_bench.moe.insert import MoEFFN, collect_aux
from moge_bench.presets import resolve

NAMES = ("tiny-swin", "tiny-swinv2")


def build(preset, method, **overrides):
    return build_model(resolve(preset, method, {"moe.num_experts": 9, **overrides}))


@pytest.mark.parametrize("preset", NAMES)
def test_methods_share_every_weight_they_have_in_common(preset):
    dense, moe, moge = (build(preset, m).state_dict() for m in ("dense", "moe", "moge"))
    assert moe.keys() == moge.keys()
    assert all(torch.equal(moe[name], moge[name]) for name in moe)
    shared = dense.keys() & moe.keys()
    assert len(shared) > 40
    assert all(torch.equal(dense[name], moe[name]) for name in shared)


@pytest.mark.parametrize("preset", NAMES)
def test_a_layer_sees_the_tokens_of_its_stage(preset):
    model = build(preset, "moge")
    with collect_aux(model) as auxes:
        logits = model(torch.randn(3, 1, 28, 28)).logits
    assert logits.shape == (3, 10)
    # 28 / 2 = 14 a side, 7 in the second stage.
    assert [len(aux.routing.experts) for aux in auxes] == [3 * 196, 3 * 49]


def test_sizes_of_the_ffns_that_are_replaced():
    config = resolve("swinv2-moe-t12")
    # Widths 96 * 2^2 and 96 * 2^3, FFNs four times that.
    assert [(f.hidden_size, f.ffn_size) for f in ffns_of(config)] == [(384, 1536), (768, 3072)]
    vit = resolve("tiny-vit", "moe")
    assert ffns_of(vit) == [vit.model]


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2)
    out = drop_path(x, 0.25, training=True)
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2)))
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert drop_path(x, 0.25, training=False) is x


@pytest.mark.parametrize("method", ["dense", "moe"])
@pytest.mark.parametrize("preset", NAMES)
def test_every_ffn_but_the_first_may_be_skipped(preset, method):
    """In training with a share near 1 the last FFN branch adds nothing for nearly every image."""
    model = build(preset, method, **{"model.drop_path": 0.999}).train()
    grown = []
    block = (model.swin if preset == "tiny-swin" else model.swinv2).encoder.layers[1].blocks[1]
    ffn = block.mlp if preset == "tiny-swin" else block.drop_path
    ffn.register_forward_hook(lambda module, inputs, output: grown.append(output))
    torch.manual_seed(0)
    model(torch.randn(8, 1, 28, 28))
    assert not grown[-1].any()
    grown.clear()
    with torch.no_grad():
        model.eval()(torch.randn(8, 1, 28, 28))
    assert grown[-1].any()


def test_dropout_of_the_moe_adds_to_that_of_the_ffn():
    model = build("tiny-swin", "moe", **{"moe.dropout": 0.1})
    assert [m.dropout.p for m in model.modules() if isinstance(m, MoEFFN)] == [
        pytest.approx(0.1)
    ] * 2
    # What a GPT-2 drops itself, 0.5, and 0.2 more: 0.5 * 0.8 is left.
    config = resolve("tiny-lm", "moe", {"model.dropout": 0.5, "moe.dropout": 0.2})
    model = build_model(config, 300)
    assert {m.dropout.p for m in model.modules() if isinstance(m, MoEFFN)} == {1 - 0.5 * 0.8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 26}, "image_size=26 must be a multiple of 4: patch_size=2, halved 1 times"),
        ({"num_heads": [1, 3]}, "heads=3 of stage 1 must divide its width 32"),
        ({"num_heads": [1]}, r"depths=\(2, 2\) and num_heads=\(1,\) must have one number"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    values = resolve("tiny-swin", "dense").model_dump(mode="json")
    values["model"] |= settings
    with pytest.raises(ValueError, match=message):
        build_config(values)


def test_dense_wide_needs_the_width_where_stages_differ():
    assert resolve("tiny-swin", "dense-wide").moe.expert_size is None  # k = 1: as the FFN
    with pytest.raises(ValueError, match=r"needs moe.expert_size"):
        resolve("tiny-swin", "dense-wide", {"moe.top_k": 2})
