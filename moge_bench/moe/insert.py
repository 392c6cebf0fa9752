"""Put MoE layers into an existing transformer, and collect what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from moge_bench.moe.layer import MoEAux, MoELayer
from moge_bench.moe.residual import Residual


class MoEFFN(nn.Module):
    """Stands where a block's FFN stood: returns what the block adds to its residual stream.

    The ``MoEAux`` of a call goes to the list of the enclosing ``collect_aux``; outside one it is
    dropped, as in inference. ``index`` counts the MoE layers of the model, for ``residual``.
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the increment for ``x``, (..., hidden_size)."""
        y, aux = self.layer(x)
        if self._collected is not None:
            self._collected.append(aux)
        return self.residual.increment(self.index, self.dropout(y))


@contextmanager
def collect_aux(model: nn.Module) -> Iterator[list[MoEAux]]:
    """Collect the ``MoEAux`` of every inserted MoE layer called inside the block, in call order.

    >>> with collect_aux(model) as auxes:
    ...     output = model(x)
    >>> loss = task_loss(output) + sum(aux.loss for aux in auxes)
    """
    collected: list[MoEAux] = []
    ffns = [module for module in model.modules() if isinstance(module, MoEFFN)]
    for ffn in ffns:
        ffn._collected = collected
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
