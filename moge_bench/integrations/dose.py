"""The dose: how much of what trains the gates is the group loss (docs/method.md "Controls")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moge_bench.integrations.attachment import GroupSparsity
from moge_bench.integrations.hooks import RouterHook


class DoseError(ValueError):
    """The model, or this batch of it, has no dose to measure."""


@dataclass(frozen=True)
class Dose:
    """Norms of gradients at the gates, of one batch.

    Attributes:
        group_weight: lambda when it was measured.
        task: {router: |grad of the task loss|}, whatever the model's own loss holds, its balance
            loss included, with respect to the router's parameters.
        group: {router: |grad of the sum over routers of L_group|}, not multiplied by lambda.
    """

    group_weight: float
    task: dict[str, float]
    group: dict[str, float]

    @property
    def ratio(self) -> float:
        """lambda * |grad L_group| / |grad task loss|, over the parameters of all gates."""
        return self.group_weight * self.per_unit if self.group_weight else 0.0

    @property
    def per_unit(self) -> float:
        """The ratio for lambda = 1; infinite where the task loss has no gradient at the gates."""
        return _quotient(math.hypot(*self.group.values()), math.hypot(*self.task.values()))

    @property
    def ratios(self) -> dict[str, float]:
        """The ratio at each gate."""
        return {
            name: _quotient(self.group_weight * self.group[name], norm)
            for name, norm in self.task.items()
        }

    def weight_for(self, ratio: float) -> float:
        """Return the lambda that has this ratio.

        Raises ValueError where no lambda does: one of the two losses has no gradient at the gates.
        """
        if not (math.isfinite(ratio) and ratio >= 0):
            raise ValueError(f"ratio must be a finite number >= 0, got {ratio!r}")
        if not all(map(math.isfinite, (*self.task.values(), *self.group.values()))):
            raise ValueError("no lambda gives a ratio: a gradient at the gates is not finite")
        if not self.per_unit:
            raise ValueError(
                "no lambda gives a ratio: the group loss has no gradient at the gates "
                "(group_size=1, or scores that are uniform)"
            )
        if not math.isfinite(self.per_unit):
            raise ValueError(
                "no lambda gives a ratio: the task loss has no gradient at the gates (one expert a "
                "token, whose weight is renormalised)"
            )
        return ratio / self.per_unit


def measure_dose(model: nn.Module, *args: Any, **kwargs: Any) -> Dose:
    """Return the ``Dose`` of one batch: ``measure_dose(model, **batch)``, labels included.

    Runs one forward of the attached ``model``, in its present mode and not compiled, and two
    backward passes to the gates. Neither the parameters' ``grad`` nor the random numbers of the
    training change. Parameters that are sharded (FSDP, DeepSpeed ZeRO-3) cannot be measured.

    Raises ValueError if the loss is not attached, and DoseError, which is one, if the output has
    no loss, if no router has a parameter that is trained, or if the losses are made of no such
    parameter (sharded ones).
    """
    attachment = GroupSparsity.of(model)
    gates = _gates(model)
    parameters = [parameter for _, parameter in gates]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    kept = attachment.losses, attachment.term, attachment.keeps_inputs
    attachment.keeps_parts, attachment.keeps_inputs = True, False
    try:
        with (
            torch.random.fork_rng(devices=[*devices]),
            torch.compiler.set_stance("force_eager"),
            torch.enable_grad(),
        ):
            model(*args, **kwargs)
        if attachment.parts is None:
            raise DoseError("the model's output must have a loss: give the batch its labels")
        task, group = attachment.parts
        gradients = [
            torch.autograd.grad(loss, parameters, retain_graph=loss is task, allow_unused=True)
            for loss in (task, group)
        ]
    finally:
        attachment.keeps_parts, attachment.parts = False, None
        attachment.losses, attachment.term, attachment.keeps_inputs = kept
    if all(gradient is None for found in gradients for gradient in found):
        raise DoseError(
            "model must have gates that its losses are made of: neither depends on the "
            f"{len(parameters)} parameters of its routers. Sharded ones (FSDP, DeepSpeed ZeRO-3) "
            "cannot be measured: measure before the model is sharded"
        )
    return Dose(attachment.group_weight, *(_norms(gates, found) for found in gradients))


def _quotient(group: float, task: float) -> float:
    if not group:
        return 0.0
    return group / task if task else math.inf


def _gates(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return (router, parameter) of what is trained in the attached routers."""
    found = [
        (hook.name, parameter)
        for module in model.modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, RouterHook)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    if not found:
        raise DoseError("model must have a router with a parameter that requires a gradient")
    return found


def _norms(
    gates: list[tuple[str, nn.Parameter]], gradients: tuple[torch.Tensor | None, ...]
) -> dict[str, float]:
    squares: dict[str, float] = {}
    for (name, _), gradient in zip(gates, gradients, strict=True):
        square = 0.0 if gradient is None else float(gradient.double().square().sum())
        squares[name] = squares.get(name, 0.0) + square
    return {name: math.sqrt(square) for name, square in squares.items()}
