"""The gate of a router: a linear map that computes in float32 whatever the model's dtype."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


class Gate(nn.Linear):
    """``nn.Linear`` without bias whose product is in float32 (float64 if its weight is).

    docs/method.md "Routing" 1. A module like any other: hooks on it fire, and it can be wrapped,
    parametrised or replaced.
    """

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T, (..., num_experts), for ``x``, (..., hidden_size)."""
        weight = self.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return F.linear(x.to(dtype), weight.to(dtype))


def gate_logits(gate: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what ``gate`` makes of ``x``, in float32 (float64 if the gate is), outside autocast.

    A module that took the place of a ``Gate`` (a LoRA wrapper, a quantised or plain linear layer)
    is called with ``x`` in that dtype, and with its floating-point parameters and buffers, where
    they have another one, cast to it for the call: a gradient reaches the originals.
    """
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        if isinstance(gate, Gate):
            return gate(x)
        tensors = {
            name: tensor
            for name, tensor in chain(gate.named_parameters(), gate.named_buffers())
            if tensor.is_floating_point()
        }
        double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
        dtype = torch.float64 if double else torch.float32
        cast = {name: t.to(dtype) for name, t in tensors.items() if t.dtype != dtype}
        x = x.to(dtype)
        logits = functional_call(gate, cast, (x,)) if cast else gate(x)
        return logits.to(dtype)
