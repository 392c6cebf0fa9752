"""What training a run costs, told before it is run: FLOPs, memory of a device, GPU hours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moge_bench.config import RunConfig, TextBackboneConfig
from moge_bench.models.cost import build_for_counting, cost_of_model, example_inputs
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.layer import moe_layers

# What GPU hours are reckoned with: one H100 SXM, bfloat16 without sparsity (NVIDIA's data sheet),
# of which a training of these sizes reaches a part.
PEAK_FLOPS = 989e12
UTILISATION = 0.3
_BACKWARD = 2  # times the forward's products: for the inputs and for the weights


@dataclass(frozen=True)
class TrainingCost:
    """What one run costs.

    Attributes:
        parameters, active_parameters: of the model, and those that one token meets.
        flops: of all steps, forward and backward, products alone (models/cost.py).
        state_bytes: weights, gradients, AdamW's two moments, and averaged weights, in float32, of
            one process: of divided experts its share.
        activation_bytes: what autograd keeps of one micro-batch of one process, in float32 and
            with the attention's scores, which fused attention does not keep; None where the model
            cannot be built on the meta device. No workspace, no recomputation.
        exact: False where the vocabulary is known with the data only; then these are the most.
    """

    parameters: int
    active_parameters: int
    flops: float
    state_bytes: int
    activation_bytes: int | None
    exact: bool

    @property
    def gpu_hours(self) -> float:
        """Hours of one GPU of ``PEAK_FLOPS`` at ``UTILISATION``."""
        return self.flops / (PEAK_FLOPS * UTILISATION) / 3600


def training_cost(config: RunConfig) -> TrainingCost:
    """Return what the run of ``config`` costs; no data are read, nothing is computed.

    Evaluation is not in it.
    """
    model, training = build_for_counting(config), config.training
    cost = cost_of_model(model, config)
    passes = 1 + _BACKWARD + (1 if training.gradient_checkpointing else 0)
    tokens = training.steps * training.batch_size * config.model.tokens_per_example
    copies = 4 + (training.ema_decay is not None)
    elsewhere = 0
    if training.expert_parallel:
        experts = sum(p.numel() for m in moe_layers(model) for p in m.experts.parameters())
        elsewhere = experts - experts // training.processes
    return TrainingCost(
        parameters=cost.parameters,
        active_parameters=cost.active_parameters,
        flops=float(passes * cost.flops_per_token * tokens),
        state_bytes=4 * copies * (cost.parameters - elsewhere),
        activation_bytes=_activation_bytes(model, config),
        exact=cost.exact,
    )


def _activation_bytes(model: nn.Module, config: RunConfig) -> int | None:
    if not next(model.parameters()).is_meta:
        return None
    training = config.training
    size = training.batch_size // (training.gradient_accumulation * training.processes)
    model.train()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # views share one; held, so that no id comes twice
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(model, config, size)
    return sum(storage.nbytes() for storage in kept.values())


def _loss(model: nn.Module, config: RunConfig, size: int) -> torch.Tensor:
    with collect_aux(model) as auxes:
        logits = model(**example_inputs(model, config, size)).logits
    if not isinstance(config.model, TextBackboneConfig):
        logits = logits[:, None]
    targets = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    task = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return sum((aux.loss for aux in auxes), start=task)
