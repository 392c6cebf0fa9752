import pytest
import torch
from model_samples import make, output
from torch import nn
from transformers import BertConfig, BertModel, DetrConfig
from transformers.activations import ACT2FN
from transformers.models.detr.modeling_detr import DetrMLP

from moge_bench.moe.experts import Experts
from moge_bench.moe.ffn_layouts import activation_name
from moge_bench.moe.slots import choose_slots, dense_weights, find_slots

FLAT = [(0, 0, 8, 24), (0, 1, 8, 24), (0, 2, 8, 24)]
STAGES = [(0, 0, 8, 16), (0, 1, 8, 16), (1, 0, 16, 32), (1, 1, 16, 32)]


@pytest.mark.parametrize(
    ("family", "sizes", "activation", "gated", "bias", "dropout", "residual"),
    [
        ("vit", FLAT, "gelu", False, True, 0.0, "block"),
        ("gpt2", FLAT, "relu", False, True, 0.25, "block"),
        ("swin", STAGES, "gelu", False, True, 0.0, "block"),
        ("swinv2", STAGES, "gelu", False, True, 0.25, "norm"),
        ("yolos", FLAT, "gelu", False, True, 0.25, "output"),
        ("llama", FLAT, "silu", True, False, 0.0, "block"),
    ],
)
def test_slots_of_every_family(family, sizes, activation, gated, bias, dropout, residual):
    slots = find_slots(make(family, dropout=0.25)[0])
    assert [slot.index for slot in slots] == list(range(len(sizes)))
    assert [(s.stage, s.block, s.hidden_size, s.ffn_size) for s in slots] == sizes
    assert {(s.activation, s.gated, s.bias, s.dropout, s.residual) for s in slots} == {
        (activation, gated, bias, dropout, residual)
    }


@pytest.mark.parametrize("family", ["vit", "gpt2", "swin", "swinv2", "yolos"])
def test_dense_weights_in_the_slot_give_the_model_as_it_was(family):
    """A replacement is called with what the FFN was called with, and its result used as such."""

    class Dense(nn.Module):
        def __init__(self, slot):
            super().__init__()
            self.weights, self.activation = dense_weights(slot), ACT2FN[slot.activation]

        def forward(self, x):
            w_in, b_in, w_out, b_out = self.weights
            hidden = nn.functional.linear(x, w_in, b_in)
            return nn.functional.linear(self.activation(hidden), w_out, b_out)

    model, x = make(family)
    before = output(model, x)
    for slot in find_slots(model):
        slot.replace(Dense(slot))
    torch.testing.assert_close(output(model, x), before)


def test_dense_weights_have_the_shapes_of_one_expert():
    slot = find_slots(make("gpt2")[0])[1]
    expert = Experts(8, 24, 1)
    wanted = [expert.w_in[0], expert.b_in[0], expert.w_out[0], expert.b_out[0]]
    assert [tuple(t.shape) for t in dense_weights(slot)] == [tuple(t.shape) for t in wanted]


def test_a_missing_bias_beside_one_that_is_there_is_zero():
    model, _ = make("vit")
    model.vit.layers[0].mlp.fc1.bias = None
    slot = find_slots(model)[0]
    weights = dense_weights(slot)
    assert slot.bias
    assert torch.equal(weights.b_in, torch.zeros(24))
    assert weights.b_out is model.vit.layers[0].mlp.fc2.bias


def test_gated_ffns_have_no_dense_weights():
    with pytest.raises(ValueError, match=r"model.layers.0 has a gated one.*two-layer FFNs"):
        dense_weights(find_slots(make("llama")[0])[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gelu", "gelu"), ("gelu_python", "gelu"), ("relu", "relu"), ("silu", "silu"),
     ("swish", "silu"), ("gelu_new", None), ("gelu_pytorch_tanh", None), ("quick_gelu", None),
     ("gelu_10", None), ("relu6", None), ("relu2", None), ("tanh", None)],
)  # fmt: skip
def test_activations_are_told_by_what_they_compute(name, expected):
    assert activation_name(ACT2FN[name]) == expected


class Scaled(nn.Module):
    """A module with the parts of a ViT's FFN that computes something else with them."""

    def __init__(self, ffn, scale):
        super().__init__()
        self.fc1, self.fc2, self.activation_fn = ffn.fc1, ffn.fc2, ffn.activation_fn
        self.scale = scale

    def forward(self, x):
        return self.scale * self.fc2(self.activation_fn(self.fc1(x)))


@pytest.mark.parametrize(("scale", "known"), [(1.0, True), (1.01, False)])
def test_an_ffn_is_known_by_what_it_computes(scale, known):
    model, _ = make("vit")
    model.vit.layers[1].mlp = Scaled(model.vit.layers[1].mlp, scale)
    assert [slot.index for slot in find_slots(model)] == ([0, 1, 2] if known else [0, 2])


def test_dropout_by_a_function_is_seen():
    model, _ = make("vit")
    config = DetrConfig(activation_function="relu", activation_dropout=0.1, dropout=0.0)
    model.vit.layers[1].mlp = DetrMLP(config, 8, 24)
    assert [slot.index for slot in find_slots(model)] == [0, 2]


def test_finding_leaves_modes_and_generator_alone():
    model, _ = make("gpt2")
    model.train()
    model.transformer.h[1].mlp.dropout.eval()
    before = [module.training for module in model.modules()], torch.get_rng_state()
    find_slots(model)
    assert [module.training for module in model.modules()] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_slots_of_a_model_without_values():
    with torch.device("meta"):
        model, _ = make("swinv2")
    assert [slot.hidden_size for slot in find_slots(model)] == [8, 8, 16, 16]


def test_models_without_known_ffns_are_told_what_is_known():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=11, intermediate_size=16, **sizes))
    known = r"known form: .*mlp\.c_fc, mlp\.c_proj \(GPT-2\).*BertModel has none; "
    found = r"encoder\.layer\.0 has intermediate=BertIntermediate, output=BertOutput"
    with pytest.raises(ValueError, match=known + found):
        find_slots(bert)
    with pytest.raises(ValueError, match=r"Linear has none$"):
        find_slots(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [([0, 3], "blocks must be from 0 to 2, got 3"), ([-1], "from 0 to 2, got -1"),
     ([1, 1], r"every block once, got \[1, 1\]"),
     ([2], r"Block 2, vit\.layers\.2 has mlp=Identity")],
)  # fmt: skip
def test_blocks_that_cannot_be_chosen(blocks, message):
    model, _ = make("vit")
    model.vit.layers[2].mlp = nn.Identity()
    with pytest.raises(ValueError, match=message):
        choose_slots(model, blocks)
