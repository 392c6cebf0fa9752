"""Put MoE layers into an existing transformer, and collect what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moge_bench.moe.layer import MoEAux, MoELayer
from moge_bench.moe.residual import Residual
from moge_bench.ops.count_load import is_recomputation


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
    """
    collected: list[MoEAux] = []
    ffns = [module for module in model.modules() if isinstance(module, MoEFFN)]
    for ffn in ffns:
        ffn._collected = collected
        ffn._collects_gradients = torch.is_grad_enabled()
    try:
        yield collected
    finally:
        for ffn in ffns:
            ffn._collected = None


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of ``model`` that have an ``mlp``, in order.

    That is where transformers 5 keeps the FFN of ViT, GPT-2 and most others. ValueError if there
    is none.
    """
    blocks = [
        module for module in model.modules() if isinstance(getattr(module, "mlp", None), nn.Module)
    ]
    if not blocks:
        raise ValueError(
            f"model must have blocks with an `mlp` module (ViT, GPT-2, ...); "
            f"{type(model).__name__} has none"
        )
    return blocks


def insert_moe(
    model: nn.Module,
    blocks: Iterable[int],
    make_layer: Callable[[int], MoELayer],
    *,
    residual: Residual | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Replace the FFN of the named ``blocks`` (0-based) of ``model`` by ``make_layer(block)``.

    The rest of the model, its weights included, is untouched. ``residual`` says how the outputs
    join the stream (plain by default); ``dropout`` is applied to them, for backbones whose FFN
    drops its own output (GPT-2). Returns ``model``. Raises ValueError for a block that does not
    exist, before anything is replaced.
    """
    found = transformer_blocks(model)
    chosen = list(blocks)
    for block in chosen:
        if not 0 <= block < len(found):
            raise ValueError(f"blocks must be from 0 to {len(found) - 1}, got {block!r}")
    residual = residual or Residual()
    for index, block in enumerate(sorted(chosen)):
        found[block].mlp = MoEFFN(make_layer(block), index, residual, dropout)
    return model
