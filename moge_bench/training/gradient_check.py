"""Does the auxiliary loss train anything? Asked once per run, answered in the record.

A published failure of others: an auxiliary loss that is added to the objective, and logged, and
whose gradient never reaches the gate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moge_bench.moe.layer import MoEAux, MoELayer, moe_layers
from moge_bench.training.ranks import Ranks


def check_gradients(
    model: nn.Module, auxes: list[MoEAux], ranks: Ranks | None = None
) -> dict[str, Any]:
    """Return the norms of d(auxiliary loss)/d(gate weight), mean over ranks, a value per MoE layer.

    {"balance_gradient_norms": [...], "group_gradient_norms": [...]}; an empty list where a loss
    is not part of the objective. Raises RuntimeError if a group loss with lambda > 0 has no
    gradient at some gate. Gradients that training accumulates are not touched.
    """
    layers, ranks = moe_layers(model), ranks or Ranks()
    norms: dict[str, list[float]] = {"balance": [], "group": []}
    for index, (layer, aux) in enumerate(zip(layers, auxes, strict=True)):
        if layer.balance != "none":
            norms["balance"].append(_gate_gradient_norm(aux.losses["balance"], layer, ranks))
        if layer.group_weight and layer.router.num_experts > 1:
            norm = _gate_gradient_norm(aux.losses["group"], layer, ranks)
            if norm == 0:  # NaN is the loop's to find: a divergence
                raise RuntimeError(
                    f"MoE layer {index}: the group loss has gradient norm {norm} at the gate, so "
                    f"lambda={layer.group_weight} would train nothing"
                )
            norms["group"].append(norm)
    return {f"{name}_gradient_norms": values for name, values in norms.items()}


def _gate_gradient_norm(loss: torch.Tensor, layer: MoELayer, ranks: Ranks) -> float:
    if not loss.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(
        loss, layer.router.gate.weight, retain_graph=True, allow_unused=True
    )
    return 0.0 if gradient is None else float(ranks.mean(gradient).norm())
