"""The optimiser and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from moge_bench.config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Return the factor on the peak rate: linear warm-up, then constant or a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(config.steps - config.warmup_steps, 1)
    final = config.final_learning_rate / config.learning_rate
    cosine = (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0))) / 2
    return final + (1 - final) * cosine


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW; biases and norms (one value a channel) are not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_bias = parameter.dim() < 2 or name.rsplit(".", 1)[-1].startswith("b_")
        (plain if is_bias else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )
