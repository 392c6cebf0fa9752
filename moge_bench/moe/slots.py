"""FFN slots: where a transformer keeps its feed-forward networks (FFNs), and how each is replaced.

Legend: d hidden size, f hidden size of an FFN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from moge_bench.moe.ffn_layouts import (
    SUPPORTED,
    Place,
    activation_name,
    find_places,
    get,
    matrix,
    recognise,
)
from moge_bench.ops.topography import as_int


class DenseWeights(NamedTuple):
    """The parameters of one dense FFN, as ``Experts.upcycle_`` takes them."""

    w_in: torch.Tensor  # (f, d)
    b_in: torch.Tensor | None  # (f,)
    w_out: torch.Tensor  # (d, f)
    b_out: torch.Tensor | None  # (d,)


@dataclass(frozen=True, eq=False)
class Slot:
    """One place of a model that a known FFN fills.

    Attributes:
        index: of its block among all that have a place for an FFN, in the model's order, from 0.
        stage, block: numbers of the stage (0 in a model of one) and of the block in the stage.
        name: path of the block in the model.
        hidden_size, ffn_size: d and f.
        activation: "gelu" (exact), "relu" or "silu"; None for another function.
        gated: whether it computes W_out (activation(W_gate x) * W_in x), as SwiGLU does.
        bias: whether any of its linear maps has a bias.
        dropout: share of its output that it drops itself; what the block drops afterwards stays.
        residual: "block" if the block adds the FFN's output to the stream; "norm" if it adds a
            layer norm of it; "output" if the last part of the FFN does the adding.
        parent, parts: the block, and its attributes that make up the FFN.
        linear_in, linear_out: the linear maps from and to d; of a gated FFN not the gate.
    """

    index: int
    stage: int
    block: int
    name: str
    hidden_size: int
    ffn_size: int
    activation: str | None
    gated: bool
    bias: bool
    dropout: float
    residual: str
    parent: nn.Module = field(repr=False)
    parts: tuple[str, ...] = field(repr=False)
    linear_in: nn.Module = field(repr=False)
    linear_out: nn.Module = field(repr=False)

    def replace(self, ffn: nn.Module) -> None:
        """Put ``ffn`` where the FFN is; the block calls it with x and uses what it returns.

        Of an FFN in two parts ``ffn`` becomes the first; the second passes its result on, or adds
        it to the stream where residual="output". ``ffn`` has to apply ``dropout`` itself.
        """
        first, *rest = self.parts
        setattr(self.parent, first, ffn)
        for part in rest:
            setattr(self.parent, part, _Add() if self.residual == "output" else nn.Identity())


class _Add(nn.Module):
    """The last part of an FFN that adds its result to the stream, with nothing else left in it."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum; transformers' blocks may name the arguments."""
        return hidden_states + input_tensor


def find_slots(model: nn.Module) -> list[Slot]:
    """Return the FFN slots of ``model`` in the order of its blocks.

    A block is a numbered module (``layers.3``) with an ``mlp``, or an ``intermediate`` and an
    ``output``. One whose FFN has another form than those of ``ffn_layouts``, an MoE layer for
    example, has an index and no slot. Raises ValueError, which lists the known forms, if no block
    has one.
    """
    places = list(find_places(model))
    slots = [slot for index, place in enumerate(places) if (slot := _read(index, place))]
    if not slots:
        found = f"; {places[0]}" if places else ""
        raise ValueError(
            f"model must have blocks with an FFN of a known form: {SUPPORTED}. "
            f"{type(model).__name__} has none{found}"
        )
    return slots


def choose_slots(model: nn.Module, blocks: Iterable[int]) -> list[Slot]:
    """Return the slots of the named ``blocks``, by ``Slot.index``, in the model's order.

    Raises ValueError for a block that does not exist, is named twice or has no known FFN, and
    TypeError where ``blocks`` is not some ints.
    """
    try:
        blocks = [as_int("a block", block) for block in blocks]
    except TypeError:
        raise TypeError(
            f"blocks must be the numbers of blocks, [0, 2] say, got {blocks!r}"
        ) from None
    slots = {slot.index: slot for slot in find_slots(model)}
    places = list(find_places(model))
    chosen = sorted(blocks)
    for block in chosen:
        if not 0 <= block < len(places):
            raise ValueError(f"blocks must be from 0 to {len(places) - 1}, got {block!r}")
        if block not in slots:
            raise ValueError(
                f"blocks must have an FFN of a known form: {SUPPORTED}. Block {block}, "
                f"{places[block]}"
            )
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"blocks must name every block once, got {chosen}")
    return [slots[block] for block in chosen]


def dense_weights(slot: Slot) -> DenseWeights:
    """Return the parameters of the slot's FFN, (f, d), (f,), (d, f), (d,), or views of them.

    Where one of the two maps has a bias and the other has none, that one's is zero. It works after
    the FFN was replaced too. Raises ValueError for a gated FFN, which has three matrices.
    """
    if slot.gated:
        raise ValueError(
            f"slot must hold an FFN of two linear maps to become an expert; {slot.name} has a "
            "gated one of three, and experts here are two-layer FFNs. insert_moe replaces it by "
            "fresh experts"
        )
    w_in, w_out = matrix(slot.linear_in), matrix(slot.linear_out)
    return DenseWeights(w_in, _bias(slot, slot.linear_in), w_out, _bias(slot, slot.linear_out))


def _bias(slot: Slot, linear: nn.Module) -> torch.Tensor | None:
    bias = getattr(linear, "bias", None)
    if bias is None and slot.bias:
        weight = matrix(linear)
        return weight.new_zeros(weight.shape[0])
    return bias


def _read(index: int, place: Place) -> Slot | None:
    known = recognise(place)
    if known is None:
        return None
    layout, residual = known
    block = place.block
    linear_in, linear_out = get(block, layout.linear_in), get(block, layout.linear_out)
    ffn_size, hidden_size = matrix(linear_in).shape
    numbers = [int(part) for part in place.name.split(".") if part.isdigit()]
    return Slot(
        index=index,
        stage=numbers[-2] if len(numbers) > 1 else 0,
        block=numbers[-1],
        name=place.name,
        hidden_size=hidden_size,
        ffn_size=ffn_size,
        activation=activation_name(get(block, layout.activation)),
        gated=layout.gate is not None,
        bias=any(get(block, path).bias is not None for path in layout.linears),
        dropout=get(block, layout.dropout).p if layout.dropout else 0.0,
        residual=residual,
        parent=block,
        parts=place.parts,
        linear_in=linear_in,
        linear_out=linear_out,
    )
