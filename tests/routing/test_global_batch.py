"""Losses of a batch that lies on several ranks are those of one process, gradients too."""

import copy

import pytest
import torch
import torch.distributed as dist
from rank_samples import run_ranks

from moge_bench import MoELayer, route
from moge_bench.moe.parallel import use_global_batch
from moge_bench.routing.balance import switch_loss, vmoe_loss, z_loss
from moge_bench.routing.global_batch import sum_over_ranks
from moge_bench.routing.regularizers import entropy_loss, orthogonality_loss

TOKENS, EXPERTS = 12, 6
LOSSES = {
    "switch": switch_loss,
    "vmoe": vmoe_loss,
    "z": z_loss,
    "entropy": entropy_loss,
    "orthogonality": lambda routing, group=None: orthogonality_loss(routing, None, group=group),
}
SHARES = {"even": (0, 6, 12), "uneven": (0, 9, 12), "one rank has none": (0, 12, 12)}


def rank_sums():
    """Values of this rank, and the gradient of (rank + 1) times their sum over the ranks."""
    rank = dist.get_rank()
    a = torch.tensor([1.0, 2.0]) * (rank + 1)
    a.requires_grad_()
    total, count = sum_over_ranks(dist.group.WORLD, a, 3 + rank)
    ((rank + 1) * total.sum()).backward()
    return total.detach(), count, a.grad


def test_sums_and_their_gradients():
    for total, count, gradient in run_ranks(2, rank_sums):
        assert total.tolist() == [3.0, 6.0]  # 1 + 2, 2 + 4
        assert count == 7 and count.dtype == torch.int64  # 3 + 4
        assert gradient.tolist() == [3.0, 3.0]  # of rank 0's loss 1, of rank 1's 2


def inputs():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(TOKENS, EXPERTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(TOKENS, EXPERTS, generator=generator, dtype=torch.float64) / EXPERTS
    return logits, noise, torch.arange(TOKENS) % 5 != 1


def loss_and_gradient(name, part, masked, group=None):
    logits, noise, mask = (tensor[part] for tensor in inputs())
    logits.requires_grad_()
    routing = route(logits, 2, noise=noise, mask=mask if masked else None, backend="reference")
    loss = LOSSES[name](routing, group)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def of_share(bounds):
    part = slice(*bounds[dist.get_rank() :][:2])
    cases = [(name, masked) for name in LOSSES for masked in (False, True)]
    return {case: loss_and_gradient(case[0], part, case[1], dist.group.WORLD) for case in cases}


@pytest.mark.parametrize("shares", SHARES)
def test_every_loss_is_that_of_the_whole_batch(shares):
    ranks = run_ranks(2, of_share, SHARES[shares])
    for name, masked in ranks[0]:
        loss, gradient = loss_and_gradient(name, slice(None), masked)
        for found, _ in (rank[name, masked] for rank in ranks):
            assert torch.allclose(found, loss, rtol=1e-12, atol=1e-12), (name, masked)
        # DDP and FSDP take the mean of the ranks' gradients.
        mean = torch.cat([rank[name, masked][1] for rank in ranks]) / 2
        assert torch.allclose(mean, gradient, rtol=1e-9, atol=1e-12), (name, masked)


SETTINGS = {
    "group_size": 2, "group_weight": 0.5, "balance": "switch", "z_loss_weight": 0.1,
    "regularizer": "entropy", "regularizer_weight": 0.2, "top_k": 1, "aux_weight": 0.3,
}  # fmt: skip


def layer_and_tokens():
    torch.manual_seed(0)
    layer, tokens = MoELayer(8, 12, EXPERTS, **SETTINGS), torch.randn(TOKENS, 8)
    with torch.no_grad():  # of the first six tokens all go to expert 0, of the rest to expert 1
        layer.router.gate.weight[:2] = 0
        layer.router.gate.weight[0, 0], layer.router.gate.weight[1, 0] = 50.0, -50.0
        tokens[:6, 0], tokens[6:, 0] = 3.0, -3.0
    return layer, tokens


def step_of_layer(layer, tokens):
    y, aux = layer(tokens)
    (y.square().mean() + aux.loss).backward()
    return aux.losses, [p.grad for p in layer.parameters()]


def step_under_ddp():
    layer, tokens = layer_and_tokens()
    use_global_batch(layer)
    wrapped = torch.nn.parallel.DistributedDataParallel(layer)
    mine = tokens.chunk(2)[dist.get_rank()]
    losses, gradients = step_of_layer(wrapped, mine)
    assert torch.equal(layer.router(mine).load > 0, torch.arange(EXPERTS) == dist.get_rank())
    assert copy.deepcopy(layer).process_group is None  # a copy belongs to no group
    assert layer.process_group is dist.group.WORLD
    layer.eval()  # an evaluation is a rank's own: it must not wait for the others
    if dist.get_rank() == 0:
        layer(mine)
    return {k: v.detach() for k, v in losses.items()}, gradients


def test_a_layer_under_ddp_and_experts_without_a_token():
    """Four of six experts have none anywhere, and the other two none on one of the ranks."""
    layer, tokens = layer_and_tokens()
    losses, gradients = step_of_layer(layer, tokens)
    for found, mean in run_ranks(2, step_under_ddp):
        assert found.keys() == {"balance", "z", "group", "regularizer"}
        for name, value in found.items():
            assert torch.allclose(value, losses[name], rtol=1e-6), name
        for one, other in zip(gradients, mean, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_without_a_group_of_processes_it_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"needs torch\.distributed\.init_process_group"):
        use_global_batch(MoELayer(8, 8, 4))
