"""What an MoE model does with fixed inputs, saved once per run, for the analyses (analysis/).

probes/<run_id>.safetensors. Legend: T tokens, N experts, k choices, d hidden size, f of an expert.
For all layers: ``labels``, ``positions`` and, of a text, ``tokens`` (probe_inputs.py). Per MoE
layer, named by its block, "block2.inputs":

    inputs                              (T, d) float16, what the layer was given
    logits, scores                      (T, N) float32
    experts                             (T, k) int16
    gate                                (N, d) float32, where the gate is a plain matrix
    w_in, b_in, w_out, b_out            (N, f, d), (N, f), (N, d, f), (N, d) float16
    NAME.scores, NAME.experts           (T, N) float16, (T, k) int16 under transformation NAME
    after_P.experts, after_P.margin     (T, k) int16, (T,) float16 after P % of the steps

and ``NAME.replaced``, (T,) bool, where a transformation replaces tokens. The header, "probe", is
JSON: ``ProbeHeader``.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from moge_bench.config import RunConfig
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.layer import MoELayer, moe_layers
from moge_bench.system import write_atomically
from moge_bench.training.evaluate import evaluating
from moge_bench.training.probe_inputs import ProbeInputs
from moge_bench.training.task import Task

VERSION = 3  # 1 had scores, experts, gate and labels alone; 2 the first examples of a split
PERCENTS = (10, 25, 50, 75)  # of the steps; after the last step it is the probe itself


@dataclass(frozen=True)
class ProbeHeader:
    """What the tensors of a probe do not say.

    Attributes:
        kind: "images" or "text".
        activation: of the experts.
        map_shapes: block -> [rows, cols].
        border, group_size: of the group loss; None where the run has none.
        transformations: name -> {"family", "dose"}.
    """

    version: int
    run_id: str
    method: str
    seed: int
    kind: str
    top_k: int
    activation: str
    map_shapes: dict[str, list[int]]
    border: str | None
    group_size: int | None
    transformations: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Pass:
    """What one MoE layer was given and did: inputs (T, d), logits and scores (T, N), experts."""

    inputs: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor
    experts: torch.Tensor


class Prober:
    """Looks at one run's routing of fixed inputs during training, and at the end saves it all.

    It draws no random number of the training and leaves the model as it was. ``state`` and
    ``restore`` are for a checkpoint.
    """

    def __init__(self, config: RunConfig, task: Task) -> None:
        assert config.moe is not None
        self._config = config
        self._blocks = [f"block{block}" for block in config.moe.blocks]
        self._inputs = ProbeInputs.of(config, task)
        self._history: dict[str, torch.Tensor] = {}

    def after_step(self, done: int, model: nn.Module) -> None:
        """Keep what the routers choose after ``done`` optimiser steps, where it ``is_probed``."""
        percent = _percent_at(self._config.training.steps)[done]
        for block, seen in zip(self._blocks, self._route(model, self._inputs.inputs), strict=True):
            kept = {"experts": seen.experts.to(torch.int16)}
            if seen.experts.shape[1] < seen.logits.shape[1]:
                kept["margin"] = router_margin(seen.logits, seen.experts).half()
            for name, value in kept.items():
                self._history[f"{block}.after_{percent}.{name}"] = value.cpu()

    def state(self) -> str:
        """Return what was kept so far, as text."""
        return base64.b64encode(save(self._history)).decode()

    def restore(self, state: str | None) -> None:
        """Go on from what ``state`` returned; None: from nothing, of a run without a prober."""
        self._history = load(base64.b64decode(state)) if state else {}

    def save(self, path: Path, model: nn.Module) -> None:
        """Route the inputs, and all their transformations, and write the probe to ``path``."""
        inputs = self._inputs
        tensors = {"labels": inputs.labels, "positions": inputs.positions, **self._history}
        if inputs.tokens is not None:
            tensors["tokens"] = inputs.tokens
        layers = moe_layers(model)
        passes = self._route(model, inputs.inputs)
        for block, layer, seen in zip(self._blocks, layers, passes, strict=True):
            found = {
                "inputs": seen.inputs.half(), "logits": seen.logits.float(),
                "scores": seen.scores.float(), "experts": seen.experts.to(torch.int16),
                **_weights(layer),
            }  # fmt: skip
            tensors |= {f"{block}.{name}": value for name, value in found.items()}
        transformations = {}
        for changed in inputs.transformed():
            transformations[changed.name] = {"family": changed.family, "dose": changed.dose}
            if changed.replaced is not None:
                tensors[f"{changed.name}.replaced"] = changed.replaced
            for block, seen in zip(self._blocks, self._route(model, changed.inputs), strict=True):
                tensors[f"{block}.{changed.name}.scores"] = seen.scores.half()
                tensors[f"{block}.{changed.name}.experts"] = seen.experts.to(torch.int16)
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        # One entry: the order of several is not defined, and equal probes are to be equal files.
        header = {"probe": json.dumps(asdict(self._header(layers, transformations)))}
        write_atomically(path, save(plain, header))

    def _header(
        self, layers: list[MoELayer], transformations: dict[str, dict[str, Any]]
    ) -> ProbeHeader:
        config = self._config
        assert config.moe is not None
        group = config.moe.group
        shapes = [list(layer.router.map_shape) for layer in layers]
        return ProbeHeader(
            version=VERSION, run_id=config.run_id, method=config.method, seed=config.seed,
            kind=config.data.kind, top_k=config.moe.top_k,
            activation=layers[0].experts.activation,
            map_shapes=dict(zip(self._blocks, shapes, strict=True)),
            border=None if group is None else group.border,
            group_size=None if group is None else group.size, transformations=transformations,
        )  # fmt: skip

    def _route(self, model: nn.Module, inputs: torch.Tensor) -> list[_Pass]:
        """Return what every MoE layer does with ``inputs``, in evaluation, in their order."""
        given: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
            for layer in moe_layers(model)
        ]
        try:
            with evaluating(model) as device, collect_aux(model) as auxes:
                model(inputs.to(device))
        finally:
            for hook in hooks:
                hook.remove()
        return [
            _Pass(x.flatten(0, -2), aux.routing.logits, aux.routing.scores, aux.routing.experts)
            for x, aux in zip(given, auxes, strict=True)
        ]


def _percent_at(steps: int) -> dict[int, int]:
    # A run of few steps has one for several percentages: the largest is its name.
    return {-(-percent * steps // 100): percent for percent in PERCENTS}


def is_probed(done: int, steps: int) -> bool:
    """Whether a prober looks at the routing after ``done`` of ``steps`` optimiser steps."""
    return done in _percent_at(steps)


def make_prober(config: RunConfig, task: Task) -> Prober | None:
    """Return the prober of a run; None for one without MoE layers."""
    return None if config.moe is None else Prober(config, task)


def router_margin(logits: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """Return by how much the choice was made, (T,): least logit chosen less largest one not chosen.

    Nats, since a difference of logits is the logarithm of a ratio of scores. Below 0 where a
    selection bias decided against the logits. ``logits`` (T, N), ``experts`` (T, k) with k < N.
    """
    chosen = experts.long()
    others = logits.scatter(1, chosen, float("-inf"))
    return logits.gather(1, chosen).amin(1) - others.amax(1)


def _weights(layer: MoELayer) -> dict[str, torch.Tensor]:
    """Return the weights of a layer's gate and experts, those that it has."""
    experts = layer.experts
    found = {
        name: getattr(experts, name).half()
        for name in ("w_in", "b_in", "w_out", "b_out")
        if getattr(experts, name) is not None
    }
    gate = layer.router.gate
    return found | ({"gate": gate.weight.float()} if isinstance(gate, nn.Linear) else {})
