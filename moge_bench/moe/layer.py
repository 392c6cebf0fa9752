"""The MoE layer: router, capacity, experts and the losses that go with them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from moge_bench.moe.capacity import capacity_ratio, drop_excess
from moge_bench.moe.experts import Experts
from moge_bench.moe.settings import MoESettings
from moge_bench.ops import pytrees
from moge_bench.ops.extension import choose_backend, warn_once
from moge_bench.ops.route import Routing
from moge_bench.ops.validation import check_mask
from moge_bench.routing.balance import BALANCE_LOSSES, num_counted, z_loss
from moge_bench.routing.global_batch import at_least_one, sum_over_ranks
from moge_bench.routing.regularizers import entropy_loss, orthogonality_loss, simbal_loss
from moge_bench.routing.router import TopographicRouter

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class MoEAux:
    """Everything a forward pass of an MoE layer produced beside its output.

    Attributes:
        loss: aux_weight * (balance + z_loss_weight * z + group_weight * L_group +
            regularizer_weight * regularizer), (): add it to the task loss.
        losses: the unweighted terms by name: "balance", and "z", "group" and "regularizer" where
            computed. In training with a ``process_group`` those of the batch of all its ranks.
        routing: the router's decision, before capacity, on the tokens of this rank.
        num_dropped: choices of tokens that count, dropped for lack of capacity, () int64.
        experts_backend: the backend that ran the experts; the router's is in ``routing``.

    A pytree: its tensors pass through torch.compile, torch.export, DDP and FSDP.
    """

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    routing: Routing
    num_dropped: torch.Tensor
    experts_backend: str


pytrees.register(MoEAux, ("loss", "losses", "routing", "num_dropped"), ("experts_backend",))


class _LostAux(MoEAux):
    """What the first pass of a reentrant checkpoint returns: its losses can have no gradient."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("loss", "losses"):
            raise RuntimeError(
                f"aux.{name} of an MoELayer inside a reentrant checkpoint has no gradient, since "
                "the first forward runs without; call checkpoint(..., use_reentrant=False)"
            )
        return super().__getattribute__(name)


def _in_reentrant_checkpoint() -> bool:
    """Whether this forward is the first one of ``checkpoint(..., use_reentrant=True)``."""
    if torch.compiler.is_compiling():
        return False
    frame = sys._getframe()
    code = CheckpointFunction.forward.__code__
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is code:
            return True
    return False


class MoELayer(nn.Module):
    """A sparse FFN: each token is sent to ``top_k`` of ``num_experts`` two-layer FFNs.

    y[t] = sum_i weights[t, i] * FFN_{experts[t, i]}(x[t]). The losses and statistics of a call are
    in the ``MoEAux`` that it returns, not in module state; only the counts of a selection bias
    are (``update_selection_bias``). A padded batch is called with a ``mask`` of the tokens that
    count: see ``forward``.

    Activation checkpointing with use_reentrant=False, torch's default, changes nothing. A
    reentrant one runs the first forward without gradients, so ``aux`` would hold constants: ``y``
    is right there, and reading ``aux.loss`` or ``aux.losses`` raises RuntimeError.

    Under data parallelism set ``process_group`` (``moe.parallel.use_global_batch``): losses in
    training are then those of the batch of all its ranks, equal on each, and the mean of the
    ranks' gradients, which DDP and FSDP take, is theirs. All ranks must then call the layer alike,
    one without tokens too. A copy of the layer belongs to no group. A capacity counts the tokens
    of a rank, and official reductions, sums over a device, become the mean of the ranks' sums.

    Args:
        hidden_size: width d of a token.
        ffn_size: hidden width of one expert.
        num_experts, top_k: N and k.
        settings: by keyword, as in ``MoESettings``: group_weight (lambda), balance, z_loss_weight,
            regularizer, regularizer_weight, aux_weight, capacity_factor, batch_priority,
            activation, bias; and those of ``RouterSettings``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what would work.
    """

    def __init__(
        self, hidden_size: int, ffn_size: int, num_experts: int, top_k: int = 2, **settings: Any
    ) -> None:
        super().__init__()
        s = MoESettings.of(num_experts, top_k, settings)
        self.capacity_factor = s.capacity_factor
        self.router = TopographicRouter.from_settings(hidden_size, s)
        self.experts = Experts(
            hidden_size, ffn_size, num_experts,
            activation=s.activation, bias=s.bias, backend=s.backend, check_experts=False,
        )  # fmt: skip
        if s.group_weight and self.router.group_size == 1:
            warn_once(
                f"group_weight={s.group_weight} with groups of one expert is plain MoE: the scores "
                "sum to 1, so the loss is constant up to eps; MoGE needs group_size >= 2"
            )
        self.group_weight, self.balance = s.group_weight, s.balance
        self.z_loss_weight, self.aux_weight = s.z_loss_weight, s.aux_weight
        self.regularizer, self.regularizer_weight = s.regularizer, s.regularizer_weight
        self.batch_priority = s.batch_priority
        self.process_group: dist.ProcessGroup | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": None}

    @classmethod
    def from_settings(cls, hidden_size: int, ffn_size: int, settings: MoESettings) -> Self:
        """Return the layer of ``settings`` for tokens of hidden_size and experts of ffn_size."""
        return cls(hidden_size, ffn_size, **settings.keywords(MoESettings))

    @property
    def capacity_factor(self) -> float | None:
        """C, or None where nothing is dropped."""
        return self._capacity_factor

    @capacity_factor.setter
    def capacity_factor(self, value: float | None) -> None:
        # A ratio of ints: torch.compile may make a variable of a float that it sees in forward.
        self._capacity_ratio = None if value is None else capacity_ratio(value)
        self._capacity_factor = value

    def reset_parameters(self) -> None:
        """Set every parameter and buffer as a fresh layer has them: router first, then experts."""
        self.router.reset_parameters()
        self.experts.reset_parameters()

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, MoEAux]:
        """Return (y, aux) for ``x``, (..., hidden_size); y has the shape of x and its dtype,
        under autocast autocast's.

        ``mask``, (...) bool, tells the tokens that count. The others, padding, get y = 0, cost no
        expert's time, take no capacity and enter no loss and no load, whatever x holds there: the
        tokens that count get what they would get alone. ``aux.routing`` has weights and experts
        of padding too.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() < 1 or x.shape[-1] != self.router.hidden_size:
            raise ValueError(
                f"x must have shape (..., hidden_size={self.router.hidden_size}), "
                f"got {tuple(x.shape)}"
            )
        check_mask(mask, x, "x", x.dim() - 1)
        tokens = x.reshape(-1, x.shape[-1])
        if mask is not None:
            mask = mask.reshape(-1)
        routing = self.router(tokens, mask)
        experts = routing.experts
        if mask is not None:
            experts = torch.where(mask[:, None], experts, -1)
        if self._capacity_ratio is not None:
            experts = drop_excess(
                experts, routing.weights, self.router.num_experts, self._capacity_ratio,
                self.batch_priority, None if mask is None else mask.sum(),
            )  # fmt: skip
        if self.regularizer == "orthogonality" and self.router.top_k > 1:
            outputs = self._outputs_of_choices(tokens, experts)
            weights = routing.weights.unsqueeze(-1).to(outputs.dtype)
            y = (weights * outputs).sum(1).to(outputs.dtype)  # autocast sums in float32
        else:
            outputs = None
            y = self.experts(tokens, routing.weights, experts)
        return y.reshape(x.shape), self._aux(routing, experts, outputs)

    def _outputs_of_choices(self, tokens: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Return what each chosen expert makes of its token, (T, k, d); 0 for a dropped choice."""
        one = torch.ones((len(tokens), 1), dtype=torch.float32, device=tokens.device)
        return torch.stack([self.experts(tokens, one, e) for e in experts.split(1, 1)], dim=1)

    @property
    def _ranks(self) -> dist.ProcessGroup | None:
        """The group whose batch the losses are of; an evaluation is a rank's own."""
        return self.process_group if self.training else None

    def _regularizer(self, routing: Routing, outputs: torch.Tensor | None) -> torch.Tensor:
        if self.regularizer == "entropy":
            return entropy_loss(routing, self._ranks)
        if self.regularizer == "simbal":
            return simbal_loss(self.router.gate.weight)
        return orthogonality_loss(routing, outputs, group=self._ranks)

    def _group_loss(self, routing: Routing) -> torch.Tensor:
        if self._ranks is None:
            return routing.group_loss
        assert self.router.topography is not None
        count = num_counted(routing) if self.router.topography.reduction == "token_mean" else 1
        total, count = sum_over_ranks(self._ranks, routing.group_loss * count, count)
        return total / at_least_one(count)

    def _aux(self, routing: Routing, experts: torch.Tensor, outputs: torch.Tensor | None) -> MoEAux:
        losses = {"balance": BALANCE_LOSSES[self.balance](routing, self._ranks)}
        total = losses["balance"]
        if self.z_loss_weight:
            losses["z"] = z_loss(routing, self._ranks)
            total = total + self.z_loss_weight * losses["z"]
        if self.router.group_size is not None:
            losses["group"] = self._group_loss(routing)
            if self.group_weight:  # lambda = 0 must not touch the graph of a plain MoE
                total = total + self.group_weight * losses["group"]
        if self.regularizer != "none":
            losses["regularizer"] = self._regularizer(routing, outputs)
            if self.regularizer_weight:
                total = total + self.regularizer_weight * losses["regularizer"]
        dropped = experts < 0
        if routing.mask is not None:
            dropped = dropped & routing.mask[:, None]
        lost = self.training and not torch.is_grad_enabled() and _in_reentrant_checkpoint()
        return (_LostAux if lost else MoEAux)(
            loss=self.aux_weight * total,
            losses=losses,
            routing=routing,
            num_dropped=dropped.sum(),
            experts_backend=choose_backend(self.experts.backend, experts, "expert_ffn"),
        )


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """Return every MoE layer of ``model``, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, MoELayer)]
