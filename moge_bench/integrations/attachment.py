"""``GroupSparsity``: the group-sparse loss on one model, from the begin of a forward to its end.

``BeginHook`` opens the attachment; the hooks of the models and routers inside keep what they see;
``EndHook`` has the term made of it and added to the output's loss, and closes. Between two forwards
the attachment is closed: what activation checkpointing runs again in the backward pass is not
counted twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moge_bench.integrations.hooks import Hook, LabelUse, RouterHook
from moge_bench.routing.schedule import SigmaSchedule

if TYPE_CHECKING:
    from typing_extensions import Self


class GroupSparsity:
    """What ``attach_group_sparsity`` returns: it says what the loss is, changes it, removes it.

    Attributes:
        group_weight: lambda; ``set_group_weight`` changes it.
        schedule: the ``SigmaSchedule`` that was given, or None.
        losses: {name of a router: its L_group, (), without gradient} of the last forward that the
            loss entered, not multiplied by lambda.
        term: with add_to_loss=False: lambda times the sum over routers of L_group, (), with its
            graph, of the last forward in training; the caller adds it. Else None.
    """

    def __init__(
        self, group_weight: float, schedule: SigmaSchedule | None, label_use: LabelUse,
        *, in_eval: bool, add_to_loss: bool,
    ) -> None:  # fmt: skip
        self.group_weight = check_group_weight(group_weight)
        self.schedule, self._label_use = schedule, label_use
        self.in_eval, self.add_to_loss = in_eval, add_to_loss
        self.is_open = self.began_with_gradients = self.told_of_lost_term = False
        # measure_dose and the callback set these, and read what is then kept of a forward.
        self.keeps_parts = self.keeps_inputs = False
        self.parts: tuple[torch.Tensor, torch.Tensor] | None = None
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.losses: dict[str, torch.Tensor] = {}
        self.term: torch.Tensor | None = None
        self.hooks: list[Hook] = []
        self.handles: list[RemovableHandle] = []

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the attachment of ``model``, of what it wraps or of a copy; ValueError if none."""
        for module in model.modules():
            for hook in module._forward_hooks.values():
                if isinstance(hook, Hook) and isinstance(hook.attachment, cls):
                    return hook.attachment
        raise ValueError(
            f"model must have the group loss attached, and {type(model).__name__} has not: "
            "call attach_group_sparsity(model, ...) first"
        )

    @property
    def routers(self) -> list[str]:
        """The names of the routers in the model, in its order."""
        return [hook.name for hook in self._router_hooks()]

    @property
    def sigma(self) -> float | None:
        """The present width of the filter, None for a box."""
        return self._router_hooks()[0].loss.sigma

    @property
    def group_loss(self) -> torch.Tensor | None:
        """The sum of ``losses``, (), without gradient; None before any forward."""
        return _total(self.losses) if self.losses else None

    def set_sigma(self, sigma: float | None) -> None:
        """Change the width of the filter; None is a box. Compiled code takes it as it is."""
        for loss in {hook.loss: None for hook in self._router_hooks()}:
            loss.set_sigma(sigma)

    def set_step(self, step: int) -> float:
        """Set sigma to what the schedule has for optimiser step ``step``, from 0; return it."""
        if self.schedule is None:
            raise ValueError(
                "set_step needs attach_group_sparsity(..., sigma=SigmaSchedule(...)), got "
                f"sigma={self.sigma!r}; set_sigma sets a width"
            )
        sigma = self.schedule.sigma(step)
        self.set_sigma(sigma)
        return sigma

    def set_group_weight(self, group_weight: float) -> None:
        """Change lambda; 0 leaves the model's loss alone. A compiled model compiles again."""
        self.group_weight = check_group_weight(group_weight)

    def term_for(
        self, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Return ``term`` times the share of these labels in num_items_in_batch.

        For the Trainer's compute_loss_func, which is given both and whose losses are added up over
        micro-batches. Raises ValueError where there is no term.
        """
        if self.term is None:
            raise ValueError(
                "there is no term: attach with add_to_loss=False, and call the model in training"
            )
        return self.term * self._label_use.share(labels, num_items_in_batch)

    def remove(self) -> None:
        """Take every hook off the model, which is then as it was. A second time: no effect."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.losses, self.term, self.parts, self.inputs = {}, None, None, None

    def open(self, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a forward, and drop what one that raised left behind."""
        self._forget_forward()
        self.is_open = training or self.in_eval or self.keeps_parts
        self.began_with_gradients = self.is_open and torch.is_grad_enabled()
        if self.is_open and self.keeps_inputs:
            self.inputs = args, kwargs

    def close(
        self, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """End a forward: return ``output`` with the term in its loss."""
        labels = self._label_use.of_call(args, kwargs)
        task = _loss_of(output, labels)
        trains = training and self.began_with_gradients
        if task is None and trains and self.add_to_loss:
            raise ValueError(
                f"the model's output must have a loss to add to, got {type(output).__name__} "
                "without: call the model with labels; for a loss of your own attach with "
                "add_to_loss=False and add handle.term to it"
            )
        if task is not None or trains:
            output = self._add(output, task, labels, self._label_use.share_of_call(args, kwargs))
        self._forget_forward()
        self.is_open = False
        return output

    def _add(
        self, output: Any, task: torch.Tensor | None, labels: torch.Tensor | None,
        share: torch.Tensor | float,
    ) -> Any:  # fmt: skip
        with_graph = torch.is_grad_enabled() and (self.group_weight != 0 or self.keeps_parts)
        losses: dict[str, torch.Tensor] = {}
        with torch.set_grad_enabled(with_graph):
            for hook in self._router_hooks():
                losses.update(hook.losses(labels))
            if not losses:
                raise RuntimeError(
                    f"no router ran in this forward of the model; it has {len(self.routers)}, the "
                    f"first is {self.routers[0]!r}"
                )
            total = _total(losses)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        if not self.add_to_loss:
            self.term = self.group_weight * total
        if task is None:
            return output
        if self.keeps_parts:
            self.parts = task, total.to(task.device) * share
        if self.group_weight == 0 or not self.add_to_loss:
            return output
        term = self.group_weight * (total.to(task.device) * share)
        return _with_loss(output, task + term.to(task.dtype))

    def _router_hooks(self) -> list[RouterHook]:
        return [hook for hook in self.hooks if isinstance(hook, RouterHook)]

    def _forget_forward(self) -> None:
        for hook in self.hooks:
            hook.forget()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model has an attachment of its own, and nothing of a forward under way.
        empty: dict[str, Any] = {
            "losses": {},
            "term": None,
            "parts": None,
            "inputs": None,
            "is_open": False,
            "told_of_lost_term": False,
        }
        return {**self.__dict__, **empty}


def check_group_weight(group_weight: float) -> float:
    """Return ``group_weight`` if it is a finite number >= 0; else raise TypeError or ValueError."""
    if isinstance(group_weight, bool) or not isinstance(group_weight, (int, float)):
        raise TypeError(f"group_weight must be a number, got {group_weight!r}")
    if not 0 <= group_weight < float("inf"):
        raise ValueError(f"group_weight must be finite and at least 0, got {group_weight!r}")
    return float(group_weight)


def _total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    values = list(losses.values())
    return torch.stack([loss.to(values[0].device) for loss in values]).sum()


def _loss_of(output: Any, labels: torch.Tensor | None) -> torch.Tensor | None:
    if isinstance(output, dict):  # a ModelOutput is one
        return output.get("loss")
    if isinstance(output, tuple):
        return output[0] if labels is not None else None
    return output if isinstance(output, torch.Tensor) and output.dim() == 0 else None


def _with_loss(output: Any, loss: torch.Tensor) -> Any:
    if isinstance(output, dict):
        output["loss"] = loss
        return output
    return (loss, *output[1:]) if isinstance(output, tuple) else loss
