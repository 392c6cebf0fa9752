"""Routing on fixed inputs, saved once per run, for the analyses: probes/<run_id>.safetensors.

The inputs are the first ones of the validation split, the same for every run of a data set. Per MoE
layer, named by its block: ``scores`` (tokens, N) float32, ``experts`` (tokens, k) int16, ``gate``
(N, hidden size) float32 where the gate is a plain matrix; ``labels`` (tokens,) int64, the class of
a token's image or the id of the token that follows it. The header gives map, method and run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from moge_bench.config import RunConfig
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.layer import MoELayer
from moge_bench.system import write_atomically
from moge_bench.training.evaluate import evaluating
from moge_bench.training.task import Task

NUM_TOKENS = 2048  # at least: whole examples are taken


def save_probe(path: Path, config: RunConfig, task: Task, model: nn.Module) -> None:
    """Route the probe's inputs through ``model`` and write what each MoE layer did to ``path``."""
    if config.moe is None:
        return
    per_example = config.model.tokens_per_example
    inputs, labels = task.first_validation(-(-NUM_TOKENS // per_example))
    tensors = {"labels": _per_token(labels, per_example)}
    with evaluating(model) as device, collect_aux(model) as auxes:
        model(inputs.to(device))
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    shapes = {}
    for block, layer, aux in zip(config.moe.blocks, layers, auxes, strict=True):
        tensors[f"block{block}.scores"] = aux.routing.scores.float()
        tensors[f"block{block}.experts"] = aux.routing.experts.to(torch.int16)
        if isinstance(layer.router.gate, nn.Linear):
            tensors[f"block{block}.gate"] = layer.router.gate.weight.detach().float()
        shapes[f"block{block}"] = list(layer.router.map_shape)
    header = {
        "run_id": config.run_id,
        "method": config.method,
        "seed": str(config.seed),
        "map_shapes": json.dumps(shapes),
    }
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, header))


def _per_token(labels: torch.Tensor, per_example: int) -> torch.Tensor:
    """Return one label a token: an image's label for each of its tokens, a text's as they are."""
    return labels.flatten() if labels.dim() > 1 else labels.repeat_interleave(per_example)
