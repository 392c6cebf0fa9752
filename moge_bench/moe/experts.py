"""The experts of one MoE layer: N feed-forward networks with their parameters stacked.

Legend: T tokens, k choices of a token, N experts, d hidden size, f hidden size of an expert.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from moge_bench.ops.expert_ffn import expert_ffn
from moge_bench.ops.extension import BACKENDS
from moge_bench.ops.reference_experts import ACTIVATIONS


class Experts(nn.Module):
    """N feed-forward networks; each token goes through those that its router chose.

    y[t] = sum_i weights[t, i] FFN_{experts[t, i]}(x[t]),
    FFN_e(v) = w_out[e] activation(w_in[e] v + b_in[e]) + b_out[e].

    Args:
        hidden_size: d, size of a token.
        ffn_size: f, hidden size of an expert.
        num_experts: N.
        activation: "gelu" (exact, by erf), "relu" or "silu".
        bias: give every expert the biases b_in and b_out.
        backend: "auto", "extension" or "reference", as ``moge_bench.ops.expert_ffn`` defines it.
        check_experts: as there; False, without a wait, where a router of this package chooses.

    Parameters: w_in (N, f, d), b_in (N, f), w_out (N, d, f), b_out (N, d); the biases are None
    without ``bias``. Raises TypeError or ValueError naming the argument and what would work.
    """

    def __init__(
        self,
        hidden_size: int,
        ffn_size: int,
        num_experts: int,
        *,
        activation: str = "gelu",
        bias: bool = True,
        backend: str = "auto",
        check_experts: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"hidden_size": hidden_size, "ffn_size": ffn_size, "num_experts": num_experts}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {size!r}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self.hidden_size = hidden_size
        self.ffn_size = ffn_size
        self.num_experts = num_experts
        self.activation = activation
        self.backend = backend
        self.check_experts = check_experts
        self.w_in = nn.Parameter(torch.empty(num_experts, ffn_size, hidden_size))
        self.w_out = nn.Parameter(torch.empty(num_experts, hidden_size, ffn_size))
        self.b_in = nn.Parameter(torch.empty(num_experts, ffn_size)) if bias else None
        self.b_out = nn.Parameter(torch.empty(num_experts, hidden_size)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every parameter from U(-b, b), b = 1/sqrt(fan in): ``nn.Linear``'s distribution.

        The fan in is d for w_in and b_in, f for w_out and b_out. They are drawn in the order
        w_in, b_in, w_out, b_out, from ``generator`` or the global one.
        """
        for fan_in, parameters in (
            (self.hidden_size, (self.w_in, self.b_in)),
            (self.ffn_size, (self.w_out, self.b_out)),
        ):
            bound = 1 / math.sqrt(fan_in)
            for parameter in parameters:
                if parameter is not None:
                    parameter.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def upcycle_(
        self,
        w_in: torch.Tensor,
        b_in: torch.Tensor | None,
        w_out: torch.Tensor,
        b_out: torch.Tensor | None,
    ) -> None:
        """Make every expert a copy of one dense FFN (sparse upcycling, arXiv 2212.05055).

        Args:
            w_in, b_in: weight (f, d) and bias (f,) of the dense FFN's first linear layer.
            w_out, b_out: weight (d, f) and bias (d,) of its second.

        Raises ValueError for a shape that does not fit, or for a bias that is given and has no
        place or has a place and is not given. Values are cast to the parameters' dtype.
        """
        given = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
        for name, dense in given.items():
            parameter = getattr(self, name)
            if (dense is None) != (parameter is None):
                wanted = "None" if parameter is None else f"a tensor {tuple(parameter.shape[1:])}"
                raise ValueError(
                    f"{name} must be {wanted} for experts with bias={self.b_in is not None}, "
                    f"got {None if dense is None else tuple(dense.shape)}"
                )
            if dense is not None and dense.shape != parameter.shape[1:]:
                raise ValueError(
                    f"{name} must have shape {tuple(parameter.shape[1:])} to become an expert, "
                    f"got {tuple(dense.shape)}"
                )
        for name, dense in given.items():
            if dense is not None:
                getattr(self, name).copy_(dense.expand_as(getattr(self, name)))

    def forward(
        self, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor
    ) -> torch.Tensor:
        """Return y (T, d) for x (T, d), weights (T, k) and experts (T, k) int64, -1 = dropped."""
        return expert_ffn(
            x, weights, experts, self.w_in, self.b_in, self.w_out, self.b_out,
            activation=self.activation, backend=self.backend, check_experts=self.check_experts,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return (
            f"hidden_size={self.hidden_size}, ffn_size={self.ffn_size}, "
            f"num_experts={self.num_experts}, activation={self.activation!r}, "
            f"bias={self.b_in is not None}, backend={self.backend!r}"
        )
