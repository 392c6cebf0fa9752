"""MoGE in any MoE model of transformers, in one line: ``attach_group_sparsity``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from moge_bench.integrations.attachment import GroupSparsity
from moge_bench.integrations.callback import GroupSparsityCallback
from moge_bench.integrations.dose import Dose, measure_dose
from moge_bench.integrations.hooks import (
    BeginHook,
    EndHook,
    Hook,
    LabelUse,
    MaskHook,
    RouterHook,
)
from moge_bench.integrations.router_forms import (
    RouterForm,
    count_experts,
    find_routers,
    score_function_of,
)
from moge_bench.ops.topography import resolve_group_size, resolve_map_shape
from moge_bench.routing.group_norm import GroupNorm
from moge_bench.routing.schedule import SigmaSchedule

__all__ = [
    "Dose",
    "GroupSparsity",
    "GroupSparsityCallback",
    "RouterForm",
    "attach_group_sparsity",
    "measure_dose",
]

# Before it Mixtral, OLMoE, Qwen and others returned the softmax under the name router_logits.
OLDEST_TRANSFORMERS = (5, 6)


def attach_group_sparsity(
    model: nn.Module,
    *,
    group_weight: float,
    group_size: int | str = "auto",
    sigma: SigmaSchedule | float | None = 1.0,
    map_shape: tuple[int, int] | None = None,
    stride: int = 1,
    border: str = "valid",
    reduction: str = "token_mean",
    unit_energy: bool = False,
    forms: Mapping[str, RouterForm] | None = None,
    use_mask: bool = True,
    in_eval: bool = False,
    add_to_loss: bool = True,
    nonfinite: str = "propagate",
    backend: str = "auto",
) -> GroupSparsity:
    """Make the MoE model ``model`` MoGE: its training loss gains lambda * sum over layers L_group.

    L_group of a layer is ``group_norm`` of the router's scores z, (T, N): softmax or sigmoid of
    the logits, in float32, as the family routes (docs/method.md "Group-sparse loss"). From now on
    every forward of ``model`` in training mode with labels returns a loss with the term in it, in
    a loop of one's own and under the Trainer; nothing else of the model changes, nor does its
    state_dict. A batch counts as much as its task loss does: among micro-batches that are added up
    under num_items_in_batch by its share of the targets, else once, so the scale depends neither
    on their number nor on that of ranks.

    Works under autocast, torch.compile, activation checkpointing that is not reentrant, DDP. A copy
    or pickle of the model has an attachment of its own: ``GroupSparsity.of(copy)``.

    Args:
        model: the module whose forward the loop or the Trainer calls, before DDP or torch.compile
            wrap it; with PEFT the PeftModel. Routers are found by their classes
            (router_forms.FORMS), wrappers around a language model included.
        group_weight: lambda, >= 0; 0 leaves the loss alone, bit for bit. ``measure_dose`` helps to
            choose it (docs/integration.md).
        group_size: h, or "auto": 3, or the largest that fits the map.
        sigma: width of the filter in map cells; None for a box; a SigmaSchedule starts at its
            sigma(0), and ``handle.set_step`` or ``GroupSparsityCallback`` goes on.
        map_shape: of every router's experts, N each; None: docs/method.md's default.
        stride, border, reduction, unit_energy, nonfinite, backend: as in ``group_norm``. NaN goes
            into the loss by default, where whoever scales or watches losses expects it.
        forms: for routers that are not known, {class name or end of the module's name:
            RouterForm}; also to overrule a known one.
        use_mask: whether tokens with attention_mask 0 are left out. The mask is that of the
            innermost transformers model around the router that is given one of two dimensions. A
            decoder beside an encoder that is given none counts the tokens whose label is not -100.
        in_eval: whether the loss in evaluation mode gains the term too.
        add_to_loss: False: the output stays as it is, and ``handle.term`` is for the caller to add.

    Returns:
        The handle: ``set_sigma``, ``set_step``, ``set_group_weight``, ``losses``, ``remove()``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what would work; for a model
            without known routers, what looks like one; for a model that has the loss already.
        ImportError: for transformers older than 5.6.
        In a forward: ValueError for a training output without a loss, RuntimeError for a router
            whose gradients a reentrant checkpoint cuts off.
    """
    _check_version(transformers.__version__)
    _refuse_wrapper(model)
    routers = find_routers(model, forms)
    _refuse_second(model)
    schedule = sigma if isinstance(sigma, SigmaSchedule) else None
    width = sigma.sigma(0) if isinstance(sigma, SigmaSchedule) else sigma

    def make_loss(num_experts: int) -> GroupNorm:
        side = resolve_group_size(group_size, *resolve_map_shape(map_shape, num_experts), border)
        loss = GroupNorm(
            side, width, map_shape, stride, border, reduction,
            unit_energy=unit_energy, nonfinite=nonfinite, backend=backend,
        )  # fmt: skip
        loss(torch.full((1, num_experts), 1 / num_experts))  # refuses now what does not fit
        return loss

    counts = {name: count_experts(name, router) for name, (router, _) in routers.items()}
    losses = {number: make_loss(number) for number in {*counts.values()}}
    attachment = GroupSparsity(
        group_weight, schedule, _label_use(model), in_eval=in_eval, add_to_loss=add_to_loss
    )
    masks = _mask_hooks(model, routers, attachment) if use_mask else {}
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)

    begin, end = BeginHook(attachment), EndHook(attachment)
    attachment.hooks += [begin, *masks.values(), end]
    hold = attachment.handles.append
    hold(model.register_forward_pre_hook(begin, with_kwargs=True))
    for name, mask in masks.items():
        hold(model.get_submodule(name).register_forward_pre_hook(mask, with_kwargs=True))
    for name, (router, form) in routers.items():
        around = [mask for owner, mask in masks.items() if _contains(owner, name)]
        in_decoder = use_mask and encoder_decoder and ".decoder." in f".{name}"
        seen = RouterHook(
            attachment, name, form, score_function_of(form, router), counts[name],
            losses[counts[name]], around[::-1], in_decoder,
        )  # fmt: skip
        attachment.hooks.append(seen)
        hold(router.register_forward_hook(seen))
    hold(model.register_forward_hook(end, with_kwargs=True))
    return attachment


def _check_version(version: str) -> None:
    if tuple(int(digits) for digits in re.findall(r"\d+", version)[:2]) < OLDEST_TRANSFORMERS:
        raise ImportError(
            f"attach_group_sparsity needs transformers >= 5.6, got {version}: older ones call the "
            "softmax of some routers router_logits"
        )


def _refuse_wrapper(model: nn.Module) -> None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod"):  # torch.compile's
        raise ValueError(
            f"model must be what {type(model).__name__} wraps, got the wrapper: attach first, then "
            "compile or wrap"
        )


def _refuse_second(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(isinstance(hook, Hook) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"model has the group loss already, at {name or 'its root'!r}: a second would add "
                "to it. handle.remove() takes the first off; set_group_weight and set_sigma change "
                "it; GroupSparsity.of(model) is its handle"
            )


def _label_use(model: nn.Module) -> LabelUse:
    """Return how the model's loss takes labels: shifted as the Trainer judges it."""
    inner = getattr(model, "get_base_model", lambda: model)()  # of a PeftModel
    causal = LOSS_MAPPING.get(getattr(inner, "loss_type", None)) is ForCausalLMLoss
    encoder_decoder = getattr(getattr(inner, "config", None), "is_encoder_decoder", False)
    return LabelUse(_position(model.forward, "labels"), causal and not encoder_decoder)


def _position(function: Callable[..., Any], name: str) -> int:
    """Return the place of ``name`` among the positional arguments of a bound method, -1 if none."""
    names = [*inspect.signature(function).parameters]
    return names.index(name) if name in names else -1


def _mask_hooks(
    model: nn.Module, routers: Mapping[str, Any], attachment: GroupSparsity
) -> dict[str, MaskHook]:
    """Return {name: hook} of the transformers models around the routers, and of ``model``."""
    return {
        name: MaskHook(attachment, _position(module.forward, "attention_mask"))
        for name, module in model.named_modules()
        if (isinstance(module, PreTrainedModel) or module is model)
        and any(_contains(name, router) for router in routers)
    }


def _contains(owner: str, name: str) -> bool:
    return not owner or name.startswith(f"{owner}.")
