"""FSDP2 (fully_shard) around a model with MoE layers: two ranks train as one process."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_samples import run_ranks
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from moge_bench.models.build import build_model
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.parallel import use_global_batch
from moge_bench.presets import resolve

SMALL = {"model.patch_size": 14, "model.hidden_size": 16, "model.num_heads": 2, "model.depth": 2,
         "model.ffn_size": 24, "model.stem": "patch", "moe.blocks": [0, 1], "moe.num_experts": 9,
         "moe.noise": False, "moe.balance": "switch"}  # fmt: skip
METHODS = ("moge", "simbal")  # of the gate's scores, and of its weights


def model_and_batch(method):
    model = build_model(resolve("tiny-vit", method, SMALL))
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(8, 1, 28, 28, generator=generator)
    return model, images, torch.arange(8)


def train_two_steps(model, images, labels):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        with collect_aux(model) as auxes:
            logits = model(images).logits
        assert len(auxes) == 2
        loss = F.cross_entropy(logits, labels) + 10 * sum(aux.loss for aux in auxes)
        loss.backward()
        optimizer.step()
        losses.append([float(aux.loss.detach()) for aux in auxes])
    return losses


def train_sharded(method):
    model, images, labels = model_and_batch(method)
    use_global_batch(model)
    for block in model.vit.layers:
        fully_shard(block)
    fully_shard(model)
    rank = dist.get_rank()
    losses = train_two_steps(model, images.chunk(2)[rank], labels.chunk(2)[rank])
    sizes = [p.to_local().numel() for p in model.parameters()]
    assert sum(sizes) < 0.6 * sum(p.numel() for p in model.parameters())  # half of each here
    return losses, get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


@pytest.mark.parametrize("method", METHODS)
def test_two_shards_train_as_one_process(method):
    model, images, labels = model_and_batch(method)
    losses = train_two_steps(model, images, labels)
    for found, state in run_ranks(2, train_sharded, method):
        for one, other in zip(losses, found, strict=True):  # those of the whole batch, on each rank
            assert other == pytest.approx(one, rel=1e-5)
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.allclose(state[name], value, rtol=1e-4, atol=1e-6), name
