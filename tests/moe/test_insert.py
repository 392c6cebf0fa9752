import warnings

import numpy as np
import pytest
import torch
from model_samples import make
from torch import nn

from moge_bench import MoELayer
from moge_bench.moe.insert import MoEFFN, collect_aux, insert_moe
from moge_bench.moe.residual import MomentumResidual
from moge_bench.moe.upcycle import upcycle
from moge_bench.ops.extension import warn_once


def make_model():
    return make("vit")[0].vit


def make_layer(slot, **settings):
    return MoELayer(slot.hidden_size, 8, num_experts=2, top_k=1, group_size=1, **settings)


def test_only_the_named_blocks_change():
    model = make_model()
    kept = model.layers[1].mlp
    insert_moe(model, [2, 0], make_layer)
    assert [isinstance(layer.mlp, MoEFFN) for layer in model.layers] == [True, False, True]
    assert model.layers[1].mlp is kept
    assert [model.layers[block].mlp.index for block in (0, 2)] == [0, 1]


def test_aux_is_collected_in_call_order_and_only_inside():
    model = insert_moe(make_model(), [0, 2], make_layer)
    x, seen = make("vit")[1], []
    model.layers[0].mlp.layer.router.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with collect_aux(model) as auxes:
        model(x)
    model(x)
    assert len(auxes) == 2
    assert torch.equal(auxes[0].routing.logits, model.layers[0].mlp.layer.router.logits(seen[0]))


def test_an_inner_collection_gives_the_outer_one_back():
    model = insert_moe(make_model(), [0], make_layer)
    x = make("vit")[1]
    with collect_aux(model) as outer:
        model(x)
        with collect_aux(model) as inner:
            model(x)
        model(x)
    assert (len(outer), len(inner)) == (2, 1)


def test_collection_ends_when_the_body_raises():
    model = insert_moe(make_model(), [0], make_layer)
    with pytest.raises(KeyError), collect_aux(model) as auxes:
        raise KeyError
    model(make("vit")[1])
    assert auxes == []


def test_a_block_keeps_its_number_when_another_has_its_moe_layer():
    model = insert_moe(make_model(), [0], make_layer)
    insert_moe(model, [2], make_layer)
    assert [isinstance(layer.mlp, MoEFFN) for layer in model.layers] == [True, False, True]
    with pytest.raises(ValueError, match=r"Block 0, layers\.0 has mlp=MoEFFN"):
        insert_moe(model, [0], make_layer)


@pytest.mark.parametrize(
    ("blocks", "width", "message"),
    [([0, 3], 8, "blocks must be from 0 to 2, got 3"),
     ([0, 1], 4, r"hidden_size=8 for layers\.0, got 4")],
)  # fmt: skip
def test_what_is_wrong_replaces_nothing(blocks, width, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        insert_moe(model, blocks, lambda _: MoELayer(width, 8, 2, 1))
    assert not any(isinstance(module, MoEFFN) for module in model.modules())


@pytest.mark.parametrize(("family", "dropout"), [("vit", 0.0), ("gpt2", 0.25), ("swinv2", 0.25)])
def test_the_dropout_inside_an_ffn_is_kept(family, dropout):
    """A ViT drops the output of its FFN outside it, GPT-2 and SwinV2 inside."""
    model, _ = make(family, dropout=0.25)
    insert_moe(model, [0], make_layer)
    assert [ffn.dropout.p for ffn in model.modules() if isinstance(ffn, MoEFFN)] == [dropout]


def test_layers_are_as_wide_as_their_stage_and_train():
    model, x = make("swinv2")
    insert_moe(model, range(4), make_layer)
    ffns = [module for module in model.modules() if isinstance(module, MoEFFN)]
    assert [ffn.layer.router.hidden_size for ffn in ffns] == [8, 8, 16, 16]
    with collect_aux(model) as auxes:
        loss = model(x).logits.square().mean()
    # 16 / 2 = 8, 8 * 8 patches in the first stage, a quarter in the second; two images.
    assert [len(aux.routing.experts) for aux in auxes] == [128, 128, 32, 32]
    loss.backward()
    assert all(ffn.layer.experts.w_in.grad.abs().max() > 0 for ffn in ffns)


def test_dtype_and_mode_are_those_of_the_model():
    model = make_model().to(torch.bfloat16).eval()
    ffn = insert_moe(model, [1], make_layer).layers[1].mlp
    assert ffn.layer.experts.w_in.dtype == torch.bfloat16
    assert ffn.layer.router.selection_bias.dtype == torch.float32
    assert not ffn.layer.router.training


@pytest.mark.parametrize(
    ("family", "blocks", "message"),
    [("swinv2", [0], r"plain for swinv2\..*MomentumResidual: the block adds a layer norm"),
     ("swin", [1, 2], r"several stages \(widths \[8, 16\]\), got MomentumResidual")],
)  # fmt: skip
def test_a_momentum_needs_one_stream(family, blocks, message):
    momentum = MomentumResidual(len(blocks), mu=0.7, gamma1=1.0, gamma2=1.0)
    with pytest.raises(ValueError, match=message):
        insert_moe(make(family)[0], blocks, make_layer, residual=momentum)


def test_layers_of_ones_own_are_not_collected():
    """Their aux would be missed in silence, and the balance losses with it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.moe = MoELayer(8, 8, num_experts=4)

    inserted = insert_moe(make_model(), [0], make_layer)
    mixed = nn.ModuleList([inserted, Block()])
    for model, name in ((nn.Sequential(Block()), r"0\.moe"), (mixed, r"1\.moe")):
        warn_once.cache_clear()
        told = pytest.warns(RuntimeWarning, match=f"'{name}' .* returns .y, aux. to the code")
        with told, collect_aux(model):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warn_once.cache_clear()
        for model in (nn.Linear(2, 2), inserted):
            with collect_aux(model):
                pass


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: nn.Sequential(model)])
def test_a_wrapped_model_is_refused(wrap):
    model = wrap(nn.DataParallel(make_model()))
    with pytest.raises(ValueError, match="must not be wrapped yet, got DataParallel at"):
        insert_moe(model, [0], make_layer)


@pytest.mark.parametrize("insert", [insert_moe, upcycle])
def test_a_wrapped_layer_is_taken(insert):
    model = insert(
        make_model(), [np.int64(0)],
        lambda slot: torch.compile(
            MoELayer(slot.hidden_size, slot.ffn_size, num_experts=2, activation=slot.activation),
            backend="eager",
        ),
    )  # fmt: skip
    assert model(make("vit")[1]) is not None


@pytest.mark.parametrize(("blocks", "factory", "message"), [
    (1, make_layer, "blocks must be the numbers of blocks, .* got 1"),
    (["1"], make_layer, r"blocks must be the numbers of blocks, .* got \['1'\]"),
    ([0], nn.Linear(2, 2), "make_layer must be a function from a Slot to an MoELayer, got Linear"),
    ([0], None, "make_layer must be a function from a Slot to an MoELayer, got None"),
    ([0], lambda slot: None, "make_layer must return an MoELayer for .*, got NoneType"),
    ([0], lambda slot: nn.Linear(2, 2), "make_layer must return an MoELayer for .*, got Linear"),
])  # fmt: skip
def test_wrong_arguments_are_named(blocks, factory, message):
    for insert in (insert_moe, upcycle):
        with pytest.raises(TypeError, match=message):
            insert(make_model(), blocks, factory)
