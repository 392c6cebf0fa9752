"""The forms in which transformers writes the feed-forward network (FFN) of a block.

Told from the modules themselves, so that no model library is imported, and by what they compute.
Legend: d hidden size, f hidden size of an FFN.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moge_bench.ops.reference_experts import ACTIVATIONS
from moge_bench.ops.validation import readable


@dataclass(frozen=True)
class Layout:
    """One form; dotted paths start at the block."""

    families: str
    parts: tuple[str, ...]  # attributes of the block, called one after the other
    linear_in: str
    linear_out: str
    activation: str
    gate: str | None = None  # W_out (activation(W_gate x) * W_in x), as SwiGLU has it
    dropout: str | None = None  # of the output

    @property
    def linears(self) -> list[str]:
        """The paths of the two linear maps, or of the three of a gated FFN."""
        return [path for path in (self.gate, self.linear_in, self.linear_out) if path]


LAYOUTS = (
    Layout("ViT, Swin", ("mlp",), "mlp.fc1", "mlp.fc2", "mlp.activation_fn"),
    Layout("GPT-2", ("mlp",), "mlp.c_fc", "mlp.c_proj", "mlp.act", dropout="mlp.dropout"),
    Layout(
        "SwinV2, YOLOS", ("intermediate", "output"), "intermediate.dense", "output.dense",
        "intermediate.intermediate_act_fn", dropout="output.dropout",
    ),
    Layout(
        "Llama, Mistral, Qwen", ("mlp",), "mlp.up_proj", "mlp.down_proj", "mlp.act_fn",
        gate="mlp.gate_proj",
    ),
)  # fmt: skip
SUPPORTED = "; ".join(f"{', '.join(layout.linears)} ({layout.families})" for layout in LAYOUTS)

# Blocks that add a layer norm of the FFN's output to the stream; their parts look like others'.
_NORMALIZING = ("Swinv2Layer", "Swin2SRLayer")


@dataclass(frozen=True)
class Place:
    """A block and the attributes where its FFN is, of whatever form."""

    name: str
    block: nn.Module
    parts: tuple[str, ...]

    def __str__(self) -> str:
        kinds = [f"{part}={type(getattr(self.block, part)).__name__}" for part in self.parts]
        return f"{self.name} has {', '.join(kinds)}"


def find_places(model: nn.Module) -> Iterator[Place]:
    """Yield a place for every numbered module (``layers.3``) that has the parts of a layout."""
    for name, module in model.named_modules():
        if not name.rpartition(".")[2].isdigit():
            continue
        for parts in dict.fromkeys(layout.parts for layout in LAYOUTS):
            if all(isinstance(getattr(module, part, None), nn.Module) for part in parts):
                yield Place(name, module, parts)
                break


def recognise(place: Place) -> tuple[Layout, str] | None:
    """Return the layout of the FFN and ``Slot.residual``, or None if it has another form."""
    for layout in LAYOUTS:
        if layout.parts == place.parts and _has_parts(place.block, layout):
            residual = _residual(place)
            if residual is not None and _computes(place.block, layout, residual):
                return layout, residual
    return None


def get(block: nn.Module, path: str) -> Any:
    """Return what stands at the dotted ``path``, or None."""
    found: Any = block
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def matrix(linear: Any) -> torch.Tensor:
    """Return the weight as (outputs, inputs); transformers' Conv1D keeps it transposed."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.t()


def activation_name(activation: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """Return which of ``ACTIVATIONS`` computes the same, told by its values, or None.

    The grid tells gelu from its approximations (1e-4 apart) and from functions with a ceiling.
    """
    x = torch.linspace(-20, 20, 401, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        for name, ours in ACTIVATIONS.items():
            if torch.allclose(activation(x), ours(x), rtol=0, atol=1e-9):
                return name
    return None


def _has_parts(block: nn.Module, layout: Layout) -> bool:
    """Whether the FFN has the layout's modules, of the right types and sizes, and no others."""
    activation, linears = get(block, layout.activation), [get(block, it) for it in layout.linears]
    # Exactly nn.Linear: subclasses (quantised ones) keep something else in ``weight``.
    if not all(type(it) is nn.Linear or type(it).__name__ == "Conv1D" for it in linears):
        return False
    if not callable(activation) or (
        layout.dropout and type(get(block, layout.dropout)) is not nn.Dropout
    ):
        return False
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        return False
    *first, last = (tuple(matrix(linear).shape) for linear in linears)
    if any(shape != last[::-1] for shape in first):
        return False
    children: set[str] = set()
    for part in layout.parts:
        module = getattr(block, part)
        children |= {f"{part}.{name}" for name, _ in module.named_children()}
        # A share that is dropped by a function, somewhere in forward: Starcoder2, DETR.
        if any(
            "dropout" in key and isinstance(it, float) and it for key, it in vars(module).items()
        ):
            return False
    return children - {layout.activation} == {*layout.linears, *filter(None, [layout.dropout])}


def _residual(place: Place) -> str | None:
    last = getattr(place.block, place.parts[-1])
    inputs = len(inspect.signature(last.forward).parameters)
    if inputs == 1:
        return "norm" if type(place.block).__name__ in _NORMALIZING else "block"
    return "output" if inputs == 2 and len(place.parts) == 2 else None


@torch.no_grad()
def _computes(block: nn.Module, layout: Layout, residual: str) -> bool:
    """Whether the FFN, without its dropout, is that function of one token which its parts say."""
    linears = [get(block, path) for path in layout.linears]
    weight = matrix(linears[0])
    if not readable(weight):  # on the meta device there are no values to look at
        return True
    activation, parts = get(block, layout.activation), [getattr(block, it) for it in layout.parts]
    x = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None, None]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for part in parts:
            part.eval()
        *first, last = linears
        hidden = activation(first[0](x))
        expected = last(hidden * first[1](x) if layout.gate else hidden)
        y = x
        for part in parts[:-1]:
            y = part(y)
        y = parts[-1](y, torch.zeros_like(x)) if residual == "output" else parts[-1](y)
    finally:
        for module, training in modes:
            module.training = training
    if not expected.isfinite().all():  # memory that nobody has filled yet
        return True
    error = torch.finfo(weight.dtype).eps ** 0.5 * expected.abs().max()
    return y.shape == x.shape and bool((y - expected).abs().max() <= error)
