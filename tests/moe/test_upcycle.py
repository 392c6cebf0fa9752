import pytest
import torch
from model_samples import make, output

from moge_bench import MoELayer
from moge_bench.moe.insert import MoEFFN, collect_aux
from moge_bench.moe.slots import find_slots
from moge_bench.moe.upcycle import upcycle


def make_layer(slot, **settings):
    given = {"activation": slot.activation, "bias": slot.bias, **settings}
    return MoELayer(slot.hidden_size, slot.ffn_size, num_experts=4, top_k=2, **given)


FAMILIES = {"vit": [0, 2], "gpt2": [1, 2], "swin": [1, 2], "swinv2": [0, 3], "yolos": [1]}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_upcycled_model_computes_what_it_computed(family):
    model, x = make(family, dropout=0.1)
    before = output(model, x)
    returned = upcycle(model, FAMILIES[family], make_layer)
    with collect_aux(model) as auxes:
        after = output(model, x)
    assert returned is model
    assert len(auxes) == len(FAMILIES[family])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    # Not so with experts of their own: the FFNs do matter here.
    for module in model.modules():
        if isinstance(module, MoEFFN):
            module.layer.experts.reset_parameters()
    assert (output(model, x) - before).abs().max() > 0.01


def test_every_expert_is_the_ffn_and_learns_by_itself():
    model, x = make("gpt2")
    weight = model.transformer.h[0].mlp.c_fc.weight.t().clone()
    upcycle(model, [0], make_layer)
    experts = model.transformer.h[0].mlp.layer.experts
    assert torch.equal(experts.w_in, weight.expand(4, -1, -1))
    output(model, x).square().mean().backward()
    gradients = experts.w_in.grad.flatten(1)
    assert (gradients[0] - gradients[1]).abs().max() > 0


@pytest.mark.parametrize(
    ("family", "model_settings", "layer_settings", "message"),
    [
        ("llama", {}, {}, "gated one of three"),
        ("gpt2", {"activation_function": "gelu_new"}, {"activation": "gelu"},
         r"and transformer\.h\.0 has another \(the gelu by tanh is one\): insert_moe"),
        ("vit", {}, {"activation": "relu"}, r"activation of vit\.layers\.0, 'gelu'; got 'relu'"),
        ("vit", {}, {"bias": False}, "b_in must be None for experts with bias=False"),
    ],
)  # fmt: skip
def test_what_cannot_be_upcycled_is_left_alone(family, model_settings, layer_settings, message):
    model, _ = make(family, **model_settings)
    kept = find_slots(model)[0].linear_in
    with pytest.raises(ValueError, match=message):
        upcycle(model, [0, 1], lambda slot: make_layer(slot, **layer_settings))
    assert find_slots(model)[0].linear_in is kept
