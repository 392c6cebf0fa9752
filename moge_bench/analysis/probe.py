"""Reading a probe (training/probes.py says what one holds), a layer at a time.

Legend: T tokens, N experts, k choices, d hidden size, f of an expert.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from moge_bench.analysis.maps import DEFAULT_BORDER, Map
from moge_bench.training.probes import VERSION, ProbeHeader


@dataclass(frozen=True)
class Layer:
    """One MoE layer of a probe.

    Attributes:
        block: its number in the model.
        map: where its experts lie.
        tensors: what the probe holds of it, by name: "inputs", "shift_1.scores", ...
    """

    block: int
    map: Map
    tensors: dict[str, torch.Tensor]

    def array(self, name: str) -> np.ndarray:
        """Return a tensor as float64, or int64 where it holds integers."""
        tensor = self.tensors[name]
        return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64).numpy()

    @property
    def scores(self) -> np.ndarray:
        """z, (T, N) float64."""
        return self.array("scores")

    @property
    def experts(self) -> np.ndarray:
        """What each token chose, (T, k) int64."""
        return self.array("experts")


@dataclass(frozen=True)
class Probe:
    """One probe; the tensors of a layer are read when it is asked for.

    Attributes:
        path: of the file.
        header: what its tensors do not say.
        tensors: those that belong to no layer, by name: labels (T,), positions (T,), ...
    """

    path: Path
    header: ProbeHeader
    tensors: dict[str, torch.Tensor]

    def layers(self) -> Iterator[Layer]:
        """Yield every MoE layer, the first block first."""
        header = self.header
        for block, shape in header.map_shapes.items():
            with safe_open(self.path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(f"{block}.")]  # noqa: SIM118
                tensors = {name[len(block) + 1 :]: file.get_tensor(name) for name in names}
            place = Map(shape[0], shape[1], header.border or DEFAULT_BORDER)
            yield Layer(int(block.removeprefix("block")), place, tensors)

    def labels_of(self, layer: Layer) -> np.ndarray:
        """Return the class of each of the layer's tokens, or a text token's label, (T,) int64."""
        labels, length = self.tensors["labels"].numpy(), self.length_of(layer)
        if len(labels) != len(layer.experts):  # every token of an image has its class
            labels = labels[self.tensors["positions"].numpy() == 0].repeat(length)
        return labels.astype(np.int64)

    def positions_of(self, layer: Layer) -> np.ndarray:
        """Return the place of each of the layer's tokens in its example, (T,) int64."""
        length = self.length_of(layer)
        return np.tile(np.arange(length), len(layer.experts) // length)

    def length_of(self, layer: Layer) -> int:
        """Return the tokens of an example in this layer: a later stage of a Swin has fewer."""
        positions = self.tensors["positions"]
        examples = int((positions == 0).sum())
        length, rest = divmod(len(layer.experts), examples)
        if rest or (self.header.kind == "text" and length * examples != len(positions)):
            raise ValueError(
                f"{self.path}: block {layer.block} has {len(layer.experts)} tokens of {examples} "
                "examples; delete the probe"
            )
        return length


def read_probe(path: Path) -> Probe:
    """Return the probe at ``path``; ValueError for a damaged one, or one of another version."""
    try:
        with safe_open(path, framework="pt") as file:
            values: dict[str, Any] = json.loads((file.metadata() or {}).get("probe", "{}"))
            names = [name for name in file.keys() if not name.startswith("block")]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        if not isinstance(values, dict):
            raise ValueError(f"its header must be a JSON object, got {type(values).__name__}")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a probe: {error}; delete it") from None
    found = values.get("version", 1)
    if found != VERSION:
        raise ValueError(
            f"{path} is a probe of version {found}, and {VERSION} is read: delete it and its "
            "record to train that run again"
        )
    try:
        header = ProbeHeader(**values)
    except TypeError as error:  # a field is missing, or there is one more
        raise ValueError(f"{path} is not a probe: {error}; delete it") from None
    return Probe(path, header, tensors)
