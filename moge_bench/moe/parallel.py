"""MoE layers on several ranks of torch.distributed: losses of one batch, experts on many devices.

Both are for data parallelism, where every rank has other tokens. Legend: W ranks, T tokens of a
rank, k choices of a token, N experts, n = N / W of a rank, d hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from moge_bench.moe.experts import Experts
from moge_bench.moe.layer import moe_layers
from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.routing.global_batch import has_ranks

_NAMES = ("w_in", "b_in", "w_out", "b_out")


def _all_ranks(process_group: dist.ProcessGroup | None, caller: str) -> dist.ProcessGroup:
    if not has_ranks():
        raise RuntimeError(f"{caller} needs torch.distributed.init_process_group before it")
    group = process_group or dist.group.WORLD
    assert group is not None
    return group


def use_global_batch(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Let every ``MoELayer`` of ``model`` compute its losses on the batch of all ranks.

    For DDP and FSDP; ``MoELayer`` says what it means. ``process_group``: None takes all ranks.
    Returns ``model``. RuntimeError where torch.distributed is not initialised.
    """
    group = _all_ranks(process_group, "use_global_batch")
    for layer in moe_layers(model):
        layer.process_group = group
    return model


class _Exchange(torch.autograd.Function):
    """Rows sent to every rank, (sum(sent), d) -> (sum(received), d); backward sends them back."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _all_to_all(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(
    rows: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> torch.Tensor:
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived


class _MeanGradient(torch.autograd.Function):
    """The parameter as it is; of its gradient, a sum over the losses of all ranks, the mean."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, count: int) -> torch.Tensor:
        ctx.count = count
        return parameter.view_as(parameter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient / ctx.count, None


class ParallelExperts(nn.Module):
    """Stands where ``Experts`` stood: rank r keeps experts r n to r n + n - 1, of N = W n.

    A forward pass sends every choice's token to the rank of its expert, and what the expert made
    of it back: two all-to-alls of as many rows as there are choices, and one of the counts, which
    waits for the device. An expert and a rank may get no token, and a rank may have none. All ranks
    must call it alike, in evaluation too. The result is that of ``Experts``, but for the order of
    sums in the products of a batch.

    The gradient of a rank's experts is the mean over ranks of what their losses give, as DDP and
    FSDP make it of all other parameters.

    Args:
        experts: the whole ``Experts``, equal on all ranks.
        group: its ranks divide the experts.

    Parameters: ``w_in`` (n, f, d) and so on, as in ``Experts``. ValueError unless W divides N.
    """

    w_in: nn.Parameter
    w_out: nn.Parameter
    b_in: nn.Parameter | None
    b_out: nn.Parameter | None

    def __init__(self, experts: Experts, group: dist.ProcessGroup) -> None:
        super().__init__()
        count, rank = dist.get_world_size(group), dist.get_rank(group)
        if experts.num_experts % count:
            raise ValueError(
                f"num_experts={experts.num_experts} must be a multiple of the {count} ranks that "
                "divide them"
            )
        self.hidden_size, self.ffn_size = experts.hidden_size, experts.ffn_size
        self.num_experts, self.num_local = experts.num_experts, experts.num_experts // count
        self.activation, self.backend = experts.activation, experts.backend
        self.group, self.count = group, count
        mine = slice(rank * self.num_local, (rank + 1) * self.num_local)
        for name in _NAMES:
            whole = getattr(experts, name)
            local = None if whole is None else nn.Parameter(whole.detach()[mine].clone())
            self.register_parameter(name, local)

    def __deepcopy__(self, memo: dict[int, Any]) -> ParallelExperts:
        """Return a copy, as averaged weights are of, whose ranks are the same."""
        memo[id(self.group)] = self.group
        made = memo[id(self)] = self.__class__.__new__(self.__class__)
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def forward(
        self, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor
    ) -> torch.Tensor:
        """Return y (T, d) for x (T, d), weights (T, k) and experts (T, k) int64, -1 = dropped."""
        top_k, choices = experts.shape[1], experts.flatten()
        order = choices.argsort(stable=True)  # by rank, and there by expert
        order = order[(choices < 0).sum() :]
        counts = torch.bincount(choices[order], minlength=self.num_experts)
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        arriving = arriving.view(self.count, self.num_local)  # from each rank for each expert here
        sent = counts.view(self.count, self.num_local).sum(1).tolist()
        received = arriving.sum(1).tolist()

        tokens = _Exchange.apply(x[order // top_k], sent, received, self.group)
        outputs = self._run(tokens, arriving)
        returned = _Exchange.apply(outputs, received, sent, self.group)
        of_choices = returned.new_zeros((choices.numel(), x.shape[1]))
        of_choices = of_choices.index_copy(0, order, returned).view(*experts.shape, x.shape[1])
        return (weights.unsqueeze(-1).to(of_choices.dtype) * of_choices).sum(1).to(x.dtype)

    def _run(self, tokens: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor:
        """Return what the experts here make of ``tokens``, each of one of them, (rows, d)."""
        local = torch.arange(self.num_local, device=tokens.device).repeat(self.count)
        local = local.repeat_interleave(arriving.flatten(), output_size=len(tokens))
        ones = torch.ones((len(tokens), 1), dtype=torch.float32, device=tokens.device)
        w_in, w_out = (_MeanGradient.apply(p, self.count) for p in (self.w_in, self.w_out))
        b_in, b_out = (
            None if p is None else _MeanGradient.apply(p, self.count)
            for p in (self.b_in, self.b_out)
        )
        return expert_ffn(
            tokens, ones, local[:, None], w_in, b_in, w_out, b_out, activation=self.activation,
            backend=self.backend, check_experts=False,
        )  # fmt: skip

    def whole(self) -> Experts:
        """Return all experts as one ``Experts``; every rank calls it and gets a copy."""
        experts = Experts(
            self.hidden_size, self.ffn_size, self.num_experts, activation=self.activation,
            bias=self.b_in is not None, backend=self.backend, check_experts=False,
        ).to(self.w_in.device, self.w_in.dtype)  # fmt: skip
        for name in _NAMES:
            local = getattr(self, name)
            if local is not None:
                parts = [torch.empty_like(local) for _ in range(self.count)]
                dist.all_gather(parts, local.detach().contiguous(), group=self.group)
                getattr(experts, name).data.copy_(torch.cat(parts))
        return experts


def shard_experts(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Divide the experts of every ``MoELayer`` of ``model`` among the ranks (expert parallelism).

    Call it on equal models, before the optimiser is made and before DDP, which then leaves the
    experts to their ranks. Clip gradients with ``clip_grad_norm_``; ``gather_experts`` makes the
    whole model again, to be saved. Returns ``model``. RuntimeError where torch.distributed is not
    initialised, ValueError where the ranks do not divide the experts.
    """
    group = _all_ranks(process_group, "shard_experts")
    _replace_experts(model, lambda experts: ParallelExperts(experts, group))
    names = list(divided_parameters(model))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    return model


def divided_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` that every rank has others of, by name."""
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, ParallelExperts)
        for name, parameter in module.named_parameters()
    }


@contextmanager
def whole_experts(model: nn.Module) -> Iterator[nn.Module]:
    """Give every rank all experts for the body, which yields ``model``, and then its own again.

    To look at a model whose experts are divided: ranks may call it in the body as each wants, and
    what is changed of the experts there is lost. It takes the memory of all experts on each. All
    ranks enter it. A model whose experts are not divided stays as it is.
    """
    divided = [
        (layer, layer.experts)
        for layer in moe_layers(model)
        if isinstance(layer.experts, ParallelExperts)
    ]
    try:
        for layer, experts in divided:
            layer.experts = experts.whole().train(experts.training)
        yield model
    finally:
        for layer, experts in divided:
            layer.experts = experts


def gather_experts(model: nn.Module) -> nn.Module:
    """Give every rank all experts again, as they are now; all ranks call it. Returns ``model``."""
    _replace_experts(model, lambda experts: experts.whole())
    return model


def _replace_experts(model: nn.Module, make: Any) -> None:
    for layer in moe_layers(model):
        mode = layer.experts.training
        layer.experts = make(layer.experts).train(mode)


def clip_grad_norm_(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradients of a model with divided experts to norm ``max_norm`` at most.

    As torch.nn.utils.clip_grad_norm_ does with the whole model: every expert counts once, wherever
    it is, and all ranks scale alike. Returns the norm before, (). Every rank calls it.
    """
    parallel = [m for m in model.modules() if isinstance(m, ParallelExperts)]
    local = {id(p) for p in divided_parameters(model).values()}
    gradients: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for parameter in model.parameters():
        if parameter.grad is not None:
            gradients[id(parameter) in local].append(parameter.grad)
    shared, divided = (nn.utils.get_total_norm(each).square() for each in gradients)
    if parallel:
        dist.all_reduce(divided, group=parallel[0].group)
    norm = (shared + divided).sqrt()
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm
