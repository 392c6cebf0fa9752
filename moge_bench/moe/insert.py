"""Put MoE layers into an existing transformer, and collect what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moge_bench.moe.layer import MoEAux, MoELayer
from moge_bench.moe.residual import Residual
from moge_bench.moe.slots import Slot, choose_slots
from moge_bench.ops.count_load import is_recomputation
from moge_bench.ops.extension import warn_once


class MoEFFN(nn.Module):
    """Stands where a block's FFN stood: returns what the block adds to its residual stream.

    The ``MoEAux`` of a call goes to the list of the enclosing ``collect_aux``; outside one it is
    dropped, as in inference. So is that of a forward that activation checkpointing makes again.
    ``index`` counts the MoE layers of the model, for ``residual``.
    """

    def __init__(
        self, layer: MoELayer, index: int, residual: Residual, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layer = layer
        self.index = index
        self.residual = residual
        self.dropout = nn.Dropout(dropout)
        self._collected: list[MoEAux] | None = None
        self._collects_gradients = False

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the increment for ``x``, (..., hidden_size); ``mask`` as in ``MoELayer``."""
        y, aux = self.layer(x, mask)
        if self._collected is not None and not is_recomputation():
            if self.training and self._collects_gradients and not torch.is_grad_enabled():
                raise RuntimeError(
                    "the auxiliary loss of an MoE layer would have no gradient: inside a "
                    "collect_aux that began with gradients the layer ran without. Reentrant "
                    "checkpointing does that: call checkpoint(..., use_reentrant=False), in "
                    "transformers gradient_checkpointing_kwargs={'use_reentrant': False}. If it "
                    "is on purpose, put torch.no_grad() around collect_aux"
                )
            self._collected.append(aux)
        return self.residual.increment(self.index, self.dropout(y))

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model belongs to no collect_aux.
        return {**self.__dict__, "_collected": None, "_collects_gradients": False}


@contextmanager
def collect_aux(model: nn.Module) -> Iterator[list[MoEAux]]:
    """Collect the ``MoEAux`` of every inserted MoE layer called inside the block, in call order.

    >>> with collect_aux(model) as auxes:
    ...     output = model(x)
    >>> loss = task_loss(output) + sum(aux.loss for aux in auxes)

    Under activation checkpointing with use_reentrant=False every layer is collected once. With a
    reentrant one the losses could have no gradient: a layer in training then raises RuntimeError.
    Inside another collect_aux the inner one collects, and the outer one goes on after it.

    A backbone hands no mask to its FFNs: there padding counts in loads and losses. Call
    ``MoEFFN.forward`` or the layer with ``mask`` where that matters.

    Nothing is collected from a model without inserted layers. Of an ``MoELayer`` that was not
    inserted, whose ``MoEAux`` is given to who calls it, a warning says so once.
    """
    collected: list[MoEAux] = []
    ffns = [module for module in model.modules() if isinstance(module, MoEFFN)]
    _tell_of_own_layers(model, ffns)
    before = [(ffn._collected, ffn._collects_gradients) for ffn in ffns]
    for ffn in ffns:
        ffn._collected, ffn._collects_gradients = collected, torch.is_grad_enabled()
    try:
        yield collected
    finally:
        for ffn, outer in zip(ffns, before, strict=True):
            ffn._collected, ffn._collects_gradients = outer


def _tell_of_own_layers(model: nn.Module, ffns: list[MoEFFN]) -> None:
    inserted = {id(module) for ffn in ffns for module in ffn.modules()}
    for name, module in model.named_modules():
        if isinstance(module, MoELayer) and id(module) not in inserted:
            warn_once(
                "collect_aux collects from layers that insert_moe or upcycle put there; "
                f"{name or 'the model itself'!r} of {type(model).__name__} is not one: it returns "
                "(y, aux) to the code that calls it, which must add its aux.loss to the loss"
            )
            return


def made_layer(make_layer: Callable[[Slot], MoELayer], slot: Slot) -> MoELayer:
    """Return ``make_layer(slot)``, an MoELayer or what wraps one; TypeError for anything else."""
    if isinstance(make_layer, nn.Module) or not callable(make_layer):
        raise TypeError(
            f"make_layer must be a function from a Slot to an MoELayer, got {make_layer!r}"
        )
    layer = make_layer(slot)
    if not hasattr(getattr(layer, "router", None), "hidden_size"):
        raise TypeError(
            f"make_layer must return an MoELayer for {slot.name}, got {type(layer).__name__}"
        )
    return layer


def insert_moe(
    model: nn.Module,
    blocks: Iterable[int],
    make_layer: Callable[[Slot], MoELayer],
    *,
    residual: Residual | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Replace the FFN of the named ``blocks`` of ``model`` by ``make_layer(slot)``.

    ``blocks`` are ``Slot.index``, 0-based, counted through all stages. ``make_layer`` is called in
    their order and finds in the slot how wide the layer must be. The layer takes the dtype, device
    and mode of what it replaces, and its output the dropout that the FFN applied inside. The rest
    of the model, its weights included, is untouched. ``residual`` says how the outputs join the
    stream (plain by default). ``dropout`` is one more on the layers' outputs: of what both leave,
    the share is (1 - slot.dropout) (1 - dropout). Returns ``model``.

    Call it before the optimiser is made, which would miss the new parameters, and before the
    model is wrapped.

    Raises ValueError, before anything is replaced: for a block that does not exist, is named twice
    or has no known FFN (an MoE layer, for one); for a model that DDP, FSDP or DataParallel wraps;
    for a layer of another width; and for a residual other than the plain one where a block does
    not add what the layer returns as it is (SwinV2 adds its layer norm), or where the layers are
    in stages of different width. TypeError where make_layer is no function or returns no MoELayer.
    """
    _refuse_wrapper(model)
    slots = choose_slots(model, blocks)
    residual = residual or Residual()
    if type(residual) is not Residual:
        _check_stream(residual, slots)
    ffns = []
    for index, slot in enumerate(slots):
        layer = made_layer(make_layer, slot)
        if layer.router.hidden_size != slot.hidden_size:
            raise ValueError(
                f"make_layer must return a layer of hidden_size={slot.hidden_size} for {slot.name},"
                f" got {layer.router.hidden_size}"
            )
        share = 1 - (1 - slot.dropout) * (1 - dropout)
        ffn = MoEFFN(layer, index, residual, share if dropout else slot.dropout)
        weight = next(slot.linear_in.parameters())
        ffns.append(ffn.to(weight.device, weight.dtype).train(slot.parent.training))
    for slot, ffn in zip(slots, ffns, strict=True):
        slot.replace(ffn)
    return model


# By name: FSDP is a large import. FSDPModule is what fully_shard makes of a module.
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def _refuse_wrapper(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if _WRAPPERS & {cls.__name__ for cls in type(module).__mro__}:
            raise ValueError(
                f"model must not be wrapped yet, got {type(module).__name__} at "
                f"{name or 'its root'!r}, which knows nothing of new parameters: insert first, "
                "then wrap"
            )


def _check_stream(residual: Residual, slots: list[Slot]) -> None:
    """Check that what passes from layer to layer meets one stream, and reaches it unchanged."""
    kind = type(residual).__name__
    for slot in slots:
        if slot.residual == "norm":
            raise ValueError(
                f"residual must be plain for {slot.name}, got {kind}: the block adds a layer norm "
                "of what the layer returns, so the momentum would not reach the stream"
            )
    widths = sorted({slot.hidden_size for slot in slots})
    if len(widths) > 1 or len({slot.stage for slot in slots}) > 1:
        raise ValueError(
            f"residual must be plain for MoE layers in several stages (widths {widths}), got "
            f"{kind}: its momentum cannot pass from one to the next"
        )
