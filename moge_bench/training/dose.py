"""The dose: how hard an auxiliary loss pulls at the gates, measured while a run trains.

Without it a null result means nothing: a loss whose gradient is a thousandth of the task's changes
nothing, whatever it rewards (docs/method.md "Analyses").
"""

from __future__ import annotations

import torch
from torch import nn

from moge_bench.moe.layer import MoEAux, moe_layers
from moge_bench.training.ranks import Ranks

POINTS = 25  # a run's measurements of the dose


def is_measured(step: int, total: int) -> bool:
    """Whether the dose is measured at optimiser step ``step``, 0-based, of ``total``."""
    return step % max(total // POINTS, 1) == 0


def measure_doses(
    task: torch.Tensor,
    model: nn.Module,
    auxes: list[MoEAux],
    *,
    scaler: torch.amp.GradScaler | None = None,
    ranks: Ranks | None = None,
) -> dict[str, torch.Tensor]:
    """Return |w grad L| / |grad task loss| at the gate weight, (layers,), by the name of L.

    w is the whole weight of the term in the objective, aux_weight included, and L its sum over the
    MoE layers. A term that no layer has, or that has no gradient, is left out. At a gate that the
    task does not reach the ratio would be infinite: it is given as 0. The gradients that
    training accumulates are not touched; the graph is kept. Nothing waits for the device.
    With the ``scaler`` of float16 both losses are scaled as for training, so that no gradient on
    the way is lost. The gradients are means over ``ranks``, as those of training.
    """
    ranks = ranks or Ranks()
    layers = moe_layers(model)
    gates = [layer.router.gate.weight for layer in layers]
    terms: dict[str, torch.Tensor] = {}
    for layer, aux in zip(layers, auxes, strict=True):
        weights = {
            "balance": 1.0, "group": layer.group_weight, "regularizer": layer.regularizer_weight,
        }  # fmt: skip
        for name, weight in weights.items():
            if weight and name in aux.losses and aux.losses[name].requires_grad:
                term = layer.aux_weight * weight * aux.losses[name]
                terms[name] = terms[name] + term if name in terms else term
    if not terms:
        return {}
    scaled = (lambda loss: loss) if scaler is None else scaler.scale
    of_task = _norms(scaled(task), gates, ranks)
    doses = {}
    for name, term in terms.items():
        doses[name] = torch.where(of_task > 0, _norms(scaled(term), gates, ranks) / of_task, 0)
    return doses


def _norms(loss: torch.Tensor, weights: list[torch.Tensor], ranks: Ranks) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    zero = loss.new_zeros((), dtype=torch.float64)
    return torch.stack([zero if g is None else ranks.mean(g).double().norm() for g in gradients])
