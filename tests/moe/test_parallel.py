"""Experts on 2 and 4 ranks compute what one process computes with all of them."""

import pytest
import torch
import torch.distributed as dist
from rank_samples import run_ranks

from moge_bench import MoELayer
from moge_bench.moe.experts import Experts
from moge_bench.moe.parallel import (
    ParallelExperts,
    clip_grad_norm_,
    gather_experts,
    shard_experts,
    use_global_batch,
)

TOKENS, EXPERTS, HIDDEN = 24, 8, 6
NAMES = ("w_in", "b_in", "w_out", "b_out")
# Where the tokens lie: bounds of the ranks' shares.
SHARES = {2: {"even": (0, 12, 24), "one rank has none": (0, 24, 24)},
          4: {"uneven": (0, 15, 15, 17, 24)}}  # fmt: skip
# Which experts are chosen: all; two of one rank; with dropped choices; none at all.
CHOICES = {"all": range(EXPERTS), "few": (2, 3), "dropped": (-1, 0, 7, -1, 4), "none": (-1,)}


def inputs(choices):
    torch.manual_seed(1)
    experts, x = Experts(HIDDEN, 10, EXPERTS), torch.randn(TOKENS, HIDDEN)
    weights, target = torch.rand(TOKENS, 2), torch.randn(TOKENS, HIDDEN)
    allowed = torch.tensor(CHOICES[choices])
    chosen = allowed[torch.randint(len(allowed), (TOKENS, 2))]
    if choices == "all":  # as a router chooses: two different ones
        chosen[:, 1] = (chosen[:, 0] + torch.randint(1, EXPERTS, (TOKENS,))) % EXPERTS
    return experts, x, weights, chosen, target


def run(experts, x, weights, chosen, target):
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    y = experts(x, weights, chosen)
    (y * target).sum().backward()
    return [y.detach(), x.grad, weights.grad], [getattr(experts, name).grad for name in NAMES]


def run_share(choices, bounds):
    experts, *tensors = inputs(choices)
    rank = dist.get_rank()
    parallel = ParallelExperts(experts, dist.group.WORLD)
    whole = parallel.whole()
    assert all(torch.equal(getattr(whole, n), getattr(experts, n)) for n in NAMES)
    return run(parallel, *(tensor[bounds[rank] : bounds[rank + 1]] for tensor in tensors))


def run_shares(bounds):
    return {choices: run_share(choices, bounds) for choices in CHOICES}


@pytest.mark.parametrize(("count", "share"), [(c, name) for c in SHARES for name in SHARES[c]])
def test_forward_and_backward_are_those_of_one_process(count, share):
    ranks = run_ranks(count, run_shares, SHARES[count][share])
    for choices in CHOICES:
        tensors, gradients = run(*inputs(choices))
        of_tokens, of_experts = zip(*(rank[choices] for rank in ranks), strict=True)
        for expected, *parts in zip(tensors, *of_tokens, strict=True):
            assert torch.allclose(torch.cat(parts), expected, rtol=1e-5, atol=1e-6), choices
        for expected, *parts in zip(gradients, *of_experts, strict=True):
            # The mean over the ranks of sums over their tokens.
            found = torch.cat(parts) * count
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6), choices


SETTINGS = {"group_size": 2, "group_weight": 0.5, "balance": "switch", "aux_weight": 0.5}


def model_and_tokens():
    torch.manual_seed(0)
    return MoELayer(HIDDEN, 10, EXPERTS, 2, **SETTINGS), torch.randn(TOKENS, HIDDEN)


def train_two_steps(model, layer, tokens, clip):
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        y, aux = layer(tokens)
        (y.square().mean() + aux.loss).backward()
        norms.append(clip(model, 0.01))
        optimizer.step()
    return torch.stack(norms)


def train_share():
    model, tokens = model_and_tokens()
    shard_experts(use_global_batch(model))
    assert sum(p.numel() for p in model.experts.parameters()) == 2 * (2 * 60 + 10 + 6)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    mine = tokens.chunk(dist.get_world_size())[dist.get_rank()]
    norms = train_two_steps(model, wrapped, mine, clip_grad_norm_)
    gather_experts(model)
    return norms, {name: value.detach() for name, value in model.state_dict().items()}


def test_a_layer_under_ddp_trains_as_in_one_process():
    """Losses of the global batch, clipped by the norm of all experts; 4 ranks with 2 each."""

    def clip(module, most):
        return torch.nn.utils.clip_grad_norm_(module.parameters(), most)

    model, tokens = model_and_tokens()
    expected = train_two_steps(model, model, tokens, clip)
    assert (expected > 0.01).all()  # so that it is clipped
    for norms, state in run_ranks(4, train_share):
        assert torch.allclose(norms, expected, rtol=1e-5)
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.allclose(state[name], value, rtol=1e-5, atol=1e-7), name


def refusal():
    with pytest.raises(ValueError, match="num_experts=3 must be a multiple of the 2 ranks"):
        ParallelExperts(Experts(4, 4, 3), dist.group.WORLD)


def test_experts_that_the_ranks_do_not_divide_are_refused():
    run_ranks(2, refusal)
    with pytest.raises(RuntimeError, match=r"shard_experts needs torch\.distributed"):
        shard_experts(MoELayer(4, 4, 2))
