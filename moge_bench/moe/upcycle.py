"""Dense FFNs and experts: sparse upcycling (arXiv 2212.05055), and initial values alike.

An upcycled MoE model starts from the weights of a dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from moge_bench.moe.experts import Experts
from moge_bench.moe.insert import insert_moe, made_layer
from moge_bench.moe.layer import MoELayer
from moge_bench.moe.residual import Residual
from moge_bench.moe.slots import Slot, dense_weights
from moge_bench.ops.reference_experts import ACTIVATIONS


def upcycle(
    model: nn.Module,
    blocks: Iterable[int],
    make_layer: Callable[[Slot], MoELayer],
    *,
    residual: Residual | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Replace the FFN of the named ``blocks`` by MoE layers whose experts are all copies of it.

    As ``insert_moe``, whose arguments these are; the routers are those that ``make_layer`` made.
    Where a token's weights sum to 1 (renormalize=True), no choice is dropped (capacity_factor=None)
    and the residual is plain, the model computes what it computed before, until it is trained.
    Returns ``model``.

    Raises ValueError, before anything is replaced: as ``insert_moe``; and for a gated FFN, or a
    layer of other ffn_size, bias or activation than the FFN.
    """

    def make_copy(slot: Slot) -> MoELayer:
        dense = dense_weights(slot)
        layer = made_layer(make_layer, slot)
        if layer.experts.activation != slot.activation:
            if slot.activation is None:
                raise ValueError(
                    f"model must have FFNs with an activation of experts, {(*ACTIVATIONS,)}, "
                    f"and {slot.name} has another (the gelu by tanh is one): insert_moe gives it "
                    "fresh experts"
                )
            raise ValueError(
                f"make_layer must return experts with the activation of {slot.name}, "
                f"{slot.activation!r}; got {layer.experts.activation!r}"
            )
        layer.experts.upcycle_(*dense)
        return layer

    return insert_moe(model, blocks, make_copy, residual=residual, dropout=dropout)


@torch.no_grad()
def draw_as_expert(slot: Slot) -> None:
    """Give the dense FFN of ``slot`` initial values from the distribution of an expert's.

    They come from the global generator. So a dense model and an MoE differ in the experts, and not
    in how large their weights are at first. Raises ValueError for a gated FFN.
    """
    dense = dense_weights(slot)
    expert = Experts(slot.hidden_size, slot.ffn_size, 1, bias=slot.bias)
    for name, values in dense._asdict().items():
        if values is not None:
            values.copy_(getattr(expert, name)[0])
