"""The MoE layer: router, capacity, experts and the losses that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from moge_bench.moe.capacity import limit_capacity
from moge_bench.moe.experts import Experts
from moge_bench.ops.extension import choose_backend
from moge_bench.ops.route import Routing
from moge_bench.routing.balance import BALANCE_LOSSES, z_loss
from moge_bench.routing.router import TopographicRouter


@dataclass
class MoEAux:
    """Everything a forward pass of an MoE layer produced beside its output.

    Attributes:
        loss: aux_weight * (balance + z_loss_weight * z + group_weight * L_group), (): add it to
            the task loss.
        losses: the unweighted terms by name: "balance", and "z" and "group" where computed.
        routing: the router's decision, before capacity.
        num_dropped: choices dropped for lack of capacity, () int64.
        experts_backend: the backend that ran the experts; the router's is in ``routing``.
    """

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    routing: Routing
    num_dropped: torch.Tensor
    experts_backend: str


class MoELayer(nn.Module):
    """A sparse FFN: each token is sent to ``top_k`` of ``num_experts`` two-layer FFNs.

    y[t] = sum_i weights[t, i] * FFN_{experts[t, i]}(x[t]). Nothing is kept in module state: the
    losses and statistics of a call are in the ``MoEAux`` that it returns.

    Args:
        hidden_size: width d of a token.
        ffn_size: hidden width of one expert.
        num_experts: N.
        top_k: k.
        group_weight: lambda; 0 leaves the objective that of a plain MoE, bit for bit.
        balance: "switch", "vmoe" or "none" (METHOD.md "Balance losses").
        z_loss_weight: weight of the router z-loss beside the balance loss.
        aux_weight: weight of all auxiliary terms together.
        capacity_factor: an expert takes at most ceil(k T capacity_factor / N) choices; None drops
            no token.
        batch_priority: with a capacity, confident tokens choose first (V-MoE).
        activation: "gelu", "relu" or "silu".
        bias: whether the experts' linear maps have biases.
        group_size, sigma, map_shape, stride, border, reduction, renormalize, noise,
        bias_update_rate, nonfinite, backend: as in ``TopographicRouter``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what would work.
    """

    def __init__(
        self,
        hidden_size: int,
        ffn_size: int,
        num_experts: int,
        top_k: int = 2,
        *,
        group_size: int | None = 3,
        group_weight: float = 0.0,
        sigma: float | None = 1.0,
        map_shape: tuple[int, int] | None = None,
        stride: int = 1,
        border: str = "valid",
        reduction: str = "token_mean",
        renormalize: bool = True,
        noise: bool = False,
        balance: str = "switch",
        bias_update_rate: float = 0.0,
        z_loss_weight: float = 0.0,
        aux_weight: float = 0.01,
        capacity_factor: float | None = None,
        batch_priority: bool = False,
        activation: str = "gelu",
        bias: bool = True,
        nonfinite: str = "error",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if balance not in BALANCE_LOSSES:
            raise ValueError(f"balance must be one of {tuple(BALANCE_LOSSES)}, got {balance!r}")
        for name, value in (
            ("group_weight", group_weight),
            ("z_loss_weight", z_loss_weight),
            ("aux_weight", aux_weight),
        ):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value!r}")
        if group_weight and group_size is None:
            raise ValueError(f"group_weight={group_weight} needs a group_size, got None")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor must be positive or None, got {capacity_factor!r}")
        self.router = TopographicRouter(
            hidden_size, num_experts, top_k, group_size=group_size, sigma=sigma,
            map_shape=map_shape, stride=stride, border=border, reduction=reduction,
            renormalize=renormalize, noise=noise, bias_update_rate=bias_update_rate,
            nonfinite=nonfinite, backend=backend,
        )  # fmt: skip
        self.experts = Experts(
            hidden_size, ffn_size, num_experts, activation=activation, bias=bias, backend=backend
        )
        self.group_weight, self.balance = group_weight, balance
        self.z_loss_weight, self.aux_weight = z_loss_weight, aux_weight
        self.capacity_factor, self.batch_priority = capacity_factor, batch_priority

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, MoEAux]:
        """Return (y, aux) for ``x``, (..., hidden_size); y has the shape and dtype of x."""
        if x.dim() < 1 or x.shape[-1] != self.router.gate.in_features:
            raise ValueError(
                f"x must have shape (..., hidden_size={self.router.gate.in_features}), "
                f"got {tuple(x.shape)}"
            )
        tokens = x.reshape(-1, x.shape[-1])
        routing = self.router(tokens)
        experts = routing.experts
        if self.capacity_factor is not None:
            experts = limit_capacity(
                experts, routing.weights, self.router.num_experts,
                capacity_factor=self.capacity_factor, batch_priority=self.batch_priority,
            )  # fmt: skip
        y = self.experts(tokens, routing.weights, experts)
        return y.reshape(x.shape), self._aux(routing, experts)

    def _aux(self, routing: Routing, experts: torch.Tensor) -> MoEAux:
        losses = {"balance": BALANCE_LOSSES[self.balance](routing)}
        total = losses["balance"]
        if self.z_loss_weight:
            losses["z"] = z_loss(routing)
            total = total + self.z_loss_weight * losses["z"]
        if self.router.group_size is not None:
            losses["group"] = routing.group_loss
            if self.group_weight:  # lambda = 0 must not touch the graph of a plain MoE
                total = total + self.group_weight * losses["group"]
        return MoEAux(
            loss=self.aux_weight * total,
            losses=losses,
            routing=routing,
            num_dropped=(experts < 0).sum(),
            experts_backend=choose_backend(self.experts.backend, experts, "expert_ffn"),
        )
