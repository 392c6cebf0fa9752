import pytest
import torch
from torch import nn

from moge_bench import MoELayer
from moge_bench.moe.insert import MoEFFN, collect_aux, insert_moe


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.mlp(x)


def make_model(num_blocks=3):
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(num_blocks)))


def make_layer(block):
    return MoELayer(4, 8, num_experts=2, top_k=1, group_size=1)


def test_only_the_named_blocks_change():
    model = make_model()
    kept = model[1].mlp
    insert_moe(model, [0, 2], make_layer)
    assert isinstance(model[0].mlp, MoEFFN)
    assert model[1].mlp is kept
    assert isinstance(model[2].mlp, MoEFFN)


def test_aux_is_collected_in_call_order_and_only_inside():
    model = insert_moe(make_model(), [0, 2], make_layer)
    x = torch.randn(5, 4)
    with collect_aux(model) as auxes:
        model(x)
    model(x)
    assert len(auxes) == 2
    assert torch.equal(auxes[0].routing.logits, model[0].mlp.layer.router.logits(x))


def test_collection_ends_when_the_body_raises():
    model = insert_moe(make_model(), [0], make_layer)
    with pytest.raises(KeyError), collect_aux(model) as auxes:
        raise KeyError
    model(torch.randn(2, 4))
    assert auxes == []


def test_wrong_block_replaces_nothing():
    model = make_model()
    with pytest.raises(ValueError, match="blocks must be from 0 to 2, got 3"):
        insert_moe(model, [0, 3], make_layer)
    assert isinstance(model[0].mlp, nn.Linear)


def test_model_without_ffns():
    with pytest.raises(ValueError, match="Linear has none"):
        insert_moe(nn.Linear(2, 2), [0], make_layer)
