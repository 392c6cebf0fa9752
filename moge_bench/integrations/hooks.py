"""The hooks of an attached model: what they see of a forward, and keep until it ends.

Every hook keeps what it saw in itself and nothing in a common list, so that torch.compile compiles
one layer for all. Legend: B sequences of S tokens, T tokens, N experts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from moge_bench.integrations.router_forms import (
    RouterForm,
    ScoreFunction,
    check_kind,
    scores_of,
)
from moge_bench.ops.count_load import is_recomputation
from moge_bench.routing.group_norm import GroupNorm

if TYPE_CHECKING:
    from moge_bench.integrations.attachment import GroupSparsity

IGNORED_LABEL = -100


@dataclass(frozen=True)
class LabelUse:
    """How the attached model takes labels.

    Args:
        position: the place of ``labels`` among its positional arguments, -1 if it has none.
        shifted: whether a label is the target of the token before it, so that the first of a row
            is no target.
    """

    position: int
    shifted: bool

    def of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Return the labels of a call, or None."""
        return argument("labels", self.position, args, kwargs)

    def share_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | float:
        """Return ``share`` of a call to the model."""
        total, targets = kwargs.get("num_items_in_batch"), kwargs.get("shift_labels")
        if total is not None and targets is not None:
            return _count(targets) / total
        return self.share(self.of_call(args, kwargs), total)

    def share(
        self, labels: torch.Tensor | None, num_items: torch.Tensor | int | None
    ) -> torch.Tensor | float:
        """Return the weight of a batch among those whose gradients are added up.

        Who adds up the gradients of micro-batches tells the model how many targets they have
        together, num_items_in_batch, as the Trainer does. The task loss of one is then the sum
        over its targets by that number, and so its weight is its share of them. 1 where nobody
        tells: the caller divides.
        """
        if num_items is None or labels is None:
            return 1.0
        return _count(labels[..., 1:] if self.shifted else labels) / num_items


def _has_values(tensor: torch.Tensor) -> bool:
    return not torch.compiler.is_compiling() and type(tensor) is torch.Tensor and not tensor.is_meta


def _count(targets: torch.Tensor) -> torch.Tensor:
    return (targets != IGNORED_LABEL).sum()


def argument(name: str, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the argument of a call, by name or else by position (-1: it has none); or None."""
    value = kwargs.get(name)
    return args[position] if value is None and 0 <= position < len(args) else value


class Hook:
    """A hook that knows its attachment. What it keeps of a forward is not copied with a model."""

    kept: ClassVar[dict[str, Any]] = {}  # attribute: its value between two forwards

    def __init__(self, attachment: GroupSparsity) -> None:
        self.attachment = attachment
        self.forget()

    def forget(self) -> None:
        """Drop what is left of a forward."""
        for name, value in self.kept.items():
            setattr(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **self.kept}


class MaskHook(Hook):
    """Keeps the attention_mask with which a transformers model is called.

    ``position``: the place of it among the positional arguments of the model, or -1.
    """

    kept: ClassVar = {"mask": None}
    mask: Any

    def __init__(self, attachment: GroupSparsity, position: int) -> None:
        super().__init__(attachment)
        self.position = position

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run before the model."""
        if self.attachment.is_open:
            self.mask = argument("attention_mask", self.position, args, kwargs)


class RouterHook(Hook):
    """Keeps what one router reports; its scores are made after the forward.

    A checkpointed block is run again without this hook, and must then save as many tensors.

    Args:
        attachment: whose hook it is.
        name: of the router in the model.
        form, function, num_experts: what the router returns, what makes scores of it, for how
            many experts.
        loss: L_group of its scores.
        masks: of the models around the router, innermost first.
        is_decoder: whether it stands in the decoder of an encoder-decoder.
    """

    kept: ClassVar = {"reported": ()}
    reported: tuple[torch.Tensor, ...]

    def __init__(
        self, attachment: GroupSparsity, name: str, form: RouterForm,
        function: str | ScoreFunction, num_experts: int, loss: GroupNorm, masks: list[MaskHook],
        is_decoder: bool,
    ) -> None:  # fmt: skip
        super().__init__(attachment)
        self.name, self.form, self.function, self.num_experts = name, form, function, num_experts
        self.loss, self.masks, self.is_decoder = loss, masks, is_decoder
        self.is_checked = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Run after the router."""
        if not self.attachment.is_open:
            if not torch.compiler.is_compiling():
                self._warn_of_lost_term(module)
            return
        reported = output[self.form.index] if isinstance(output, (tuple, list)) else output
        if reported.shape[-1] != self.num_experts:
            raise ValueError(
                f"the router {self.name!r} must report (..., {self.num_experts}), a number for "
                f"each expert, got {tuple(reported.shape)}: the form of {type(module).__name__} "
                "is another in this version of transformers; pass forms"
            )
        if self.attachment.began_with_gradients and not torch.is_grad_enabled():
            self._refuse_lost_gradients(module)
        if not self.is_checked and _has_values(reported):
            check_kind(self.name, self.form, reported)
            self.is_checked = True
        self.reported = (*self.reported, reported)

    def losses(self, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return {name: L_group, ()}, one for each time that the router ran in this forward."""
        losses = {}
        for index, reported in enumerate(self.reported):
            scores = scores_of(self.function, reported)
            name = f"{self.name}#{index}" if index else self.name
            losses[name] = self.loss(scores, self._counted(scores, labels))
        return losses

    def _counted(self, scores: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
        """Return which tokens count, (T,) bool on the device of ``scores``, or None: all."""
        num_rows = scores.shape[0]
        for hook in self.masks:
            if hook.mask is None:
                break
            if isinstance(hook.mask, torch.Tensor) and hook.mask.dim() == 2:
                return self._flat(hook.mask, num_rows).to(scores.device)
        if self.is_decoder and labels is not None and labels.numel() == num_rows:
            return (labels != IGNORED_LABEL).reshape(-1).to(scores.device)
        return None

    def _flat(self, mask: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Return the (B, S) ``mask`` as (T,) bool; of one that covers a cache, the last columns."""
        batch, columns = mask.shape
        length = num_rows // batch if batch else 0
        if length * batch != num_rows or length > columns:
            raise ValueError(
                f"attention_mask must cover the {num_rows} tokens of the router {self.name!r}, got "
                f"{tuple(mask.shape)}; use_mask=False lets every token count"
            )
        return (mask[:, columns - length :] != 0).reshape(-1)

    def _warn_of_lost_term(self, router: nn.Module) -> None:
        lost = router.training and torch.is_grad_enabled() and self.attachment.group_weight > 0
        if lost and not self.attachment.told_of_lost_term and not is_recomputation():
            self.attachment.told_of_lost_term = True
            warnings.warn(
                f"the router {self.name!r} ran in training outside a call of the model that the "
                "group loss is attached to, so its term is in no loss: call that model itself, not "
                "its forward and not a part of it (with PEFT attach to the PeftModel), or "
                "handle.remove()",
                RuntimeWarning,
                stacklevel=2,
            )

    def _refuse_lost_gradients(self, router: nn.Module) -> None:
        if router.training and any(p.requires_grad for p in router.parameters()):
            raise RuntimeError(
                f"the group loss of {self.name!r} would have no gradient: inside a forward that "
                "began with gradients the router ran without. Reentrant checkpointing does that: "
                "use gradient_checkpointing_kwargs={'use_reentrant': False}. A router that is "
                "frozen on purpose has requires_grad False"
            )


class BeginHook(Hook):
    """Opens the attachment before the model runs."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run before the model."""
        self.attachment.open(module.training, args, kwargs)
        if self.attachment.is_open and getattr(module, "_is_replica", False):
            raise RuntimeError(
                "attach_group_sparsity does not work under torch.nn.DataParallel, whose threads "
                "share the hooks: use DistributedDataParallel (torchrun), or one visible GPU"
            )


class EndHook(Hook):
    """Puts the term into the output's loss and closes the attachment."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Run after the model; return the output with the term in its loss."""
        if self.attachment.is_open:
            return self.attachment.close(module.training, args, kwargs, output)
        return None
