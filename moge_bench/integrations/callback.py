"""A callback of the transformers Trainer: it anneals sigma and logs the loss and the dose."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from transformers import TrainerCallback

from moge_bench.integrations.attachment import GroupSparsity
from moge_bench.integrations.dose import DoseError, measure_dose
from moge_bench.routing.global_batch import has_ranks


class GroupSparsityCallback(TrainerCallback):
    """``Trainer(model, ..., callbacks=[GroupSparsityCallback()])`` for an attached model.

    At every optimiser step it sets sigma by the schedule that the loss was attached with, if any;
    the step is the Trainer's, so that a resumed run goes on. Whenever the Trainer logs its loss it
    adds to the logs, and to ``trainer.state.log_history``:

    * ``group_loss``: the sum over routers of L_group, mean over the forwards since the last log;
    * ``group_sigma``: the width of the filter (0 for a box, which has none);
    * ``group_dose``: |lambda grad L_group| / |grad task loss| at the gates for the last
      micro-batch (``measure_dose``), with the weights after the step.

    Each is the mean over processes. Reporters (TensorBoard, W&B) see them if the callback stands
    before them: ``trainer.callback_handler.callbacks.insert(0, GroupSparsityCallback())``.

    Args:
        log_dose: whether the dose is measured, which costs a forward and two backward passes to
            the gates at each log. Where it cannot be measured, as where parameters are sharded,
            a warning says so and it is not logged.

    Raises:
        RuntimeError: after a step in which the model that has the loss was never called, since
            another module around it was, or its forward directly.
    """

    def __init__(self, log_dose: bool = True) -> None:
        self.log_dose, self._measures = log_dose, False
        self._sum: torch.Tensor | None = None
        self._count = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the attachment."""
        attachment = GroupSparsity.of(kwargs["model"])
        self._measures = attachment.keeps_inputs = self.log_dose
        self._sum, self._count = None, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set sigma."""
        attachment = GroupSparsity.of(kwargs["model"])
        attachment.losses = {}
        if attachment.schedule is not None:
            attachment.set_step(state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a micro-batch."""
        self._count_forward(GroupSparsity.of(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the last micro-batch of a step."""
        self._count_forward(GroupSparsity.of(kwargs["model"]))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add to the logs of a training step."""
        logs, model = kwargs["logs"], kwargs["model"]
        if "loss" not in logs or self._sum is None:
            return
        attachment = GroupSparsity.of(model)
        values = {"group_loss": self._sum / self._count}
        if self._measures and attachment.inputs is not None:
            call_args, call_kwargs = attachment.inputs
            try:
                ratio, reason = measure_dose(model, *call_args, **call_kwargs).ratio, ""
            except DoseError as error:
                ratio, reason = math.nan, str(error)
            values["group_dose"] = values["group_loss"].new_tensor(ratio)
        figures = {name: float(_mean_over_processes(value)) for name, value in values.items()}
        if math.isnan(figures.get("group_dose", 0.0)):  # on every process alike
            reason = reason or "a process has none, or a gradient that is not finite"
            warnings.warn(f"group_dose is not logged any more: {reason}", RuntimeWarning, 2)
            del figures["group_dose"]
            self._measures = attachment.keeps_inputs = False
            attachment.inputs = None
        figures["group_sigma"] = attachment.sigma or 0.0
        logs.update(figures)
        state.log_history[-1].update(figures)
        self._sum, self._count = None, 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the last batch."""
        attachment = GroupSparsity.of(kwargs["model"])
        attachment.keeps_inputs, attachment.inputs = False, None

    def _count_forward(self, attachment: GroupSparsity) -> None:
        loss = attachment.group_loss
        if loss is None:
            raise RuntimeError(
                "the model with the group loss was not called in this step: attach to the module "
                "that the Trainer calls (with PEFT the PeftModel)"
            )
        self._sum = loss if self._sum is None else self._sum + loss
        self._count += 1


def _mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    if has_ranks():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
