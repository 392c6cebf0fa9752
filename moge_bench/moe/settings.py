"""The settings of an MoE layer as one object: those of its router, its losses and its experts."""

from __future__ import annotations

from dataclasses import dataclass

from moge_bench.moe.capacity import capacity_ratio
from moge_bench.ops.reference_experts import ACTIVATIONS
from moge_bench.ops.topography import check_flag
from moge_bench.routing.balance import BALANCE_LOSSES
from moge_bench.routing.regularizers import REGULARIZERS
from moge_bench.routing.settings import RouterSettings


@dataclass(frozen=True, kw_only=True)
class MoESettings(RouterSettings):
    """What decides an ``MoELayer``, but for the widths of its tokens and experts.

    Args:
        group_weight: lambda; 0 leaves the objective that of a plain MoE, bit for bit.
        balance: "switch", "vmoe" or "none" (docs/method.md "Balance losses").
        z_loss_weight: weight of the router z-loss beside the balance loss.
        regularizer: "none", "entropy", "simbal" or "orthogonality": a loss that MoGE is compared
            with (routing/regularizers.py).
        regularizer_weight: its weight beside the balance loss.
        aux_weight: weight of all auxiliary terms together.
        capacity_factor: an expert takes at most ceil(k T capacity_factor / N) choices; None drops
            no token.
        batch_priority: with a capacity, confident tokens choose first (V-MoE).
        activation: "gelu", "relu" or "silu".
        bias: whether the experts' linear maps have biases.
        num_experts, top_k and the rest: as in ``RouterSettings``.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """

    group_weight: float = 0.0
    balance: str = "switch"
    z_loss_weight: float = 0.0
    regularizer: str = "none"
    regularizer_weight: float = 0.0
    aux_weight: float = 0.01
    capacity_factor: float | None = None
    batch_priority: bool = False
    activation: str = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("batch_priority", self.batch_priority)
        check_flag("bias", self.bias)
        if self.balance not in BALANCE_LOSSES:
            names = tuple(BALANCE_LOSSES)
            raise ValueError(f"balance must be one of {names}, got {self.balance!r}")
        self._check_weights("group_weight", "z_loss_weight", "regularizer_weight", "aux_weight")
        if self.regularizer not in REGULARIZERS:
            raise ValueError(f"regularizer must be one of {REGULARIZERS}, got {self.regularizer!r}")
        if self.regularizer_weight and self.regularizer == "none":
            raise ValueError(
                f"regularizer_weight={self.regularizer_weight} needs a regularizer, got 'none'"
            )
        if self.group_weight and self.group_size is None:
            raise ValueError(f"group_weight={self.group_weight} needs a group_size, got None")
        if self.capacity_factor is not None:
            capacity_ratio(self.capacity_factor)  # checks it
        if self.activation not in ACTIVATIONS:
            names = tuple(ACTIVATIONS)
            raise ValueError(f"activation must be one of {names}, got {self.activation!r}")
