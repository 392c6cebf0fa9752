"""The router module: a linear gate in float32 and the fused topographic top-k of ops/route.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from moge_bench.ops.route import Routing, route_with_taps
from moge_bench.ops.topography import Topography, gaussian_taps, resolve_map_shape


class TopographicRouter(nn.Module):
    """Route tokens to experts laid out on a map, and measure the group norm of their scores.

    logits = x W^T in float32 whatever the model's dtype (METHOD.md "Routing" 1); the rest is
    ``moge_bench.route``, whose arguments keep their names here.

    Args:
        hidden_size: width d of a token.
        num_experts: N, 1 to 1024.
        top_k: k, 1 to N.
        group_size: h; None for a plain MoE router, which computes no group norm.
        sigma: width of the filter, changed during training by ``set_sigma`` (SigmaSchedule).
        noise: in training, add Normal(0, 1) / N to the logits for selection.
        bias_update_rate: > 0 turns on auxiliary-loss-free balancing (DeepSeek-V3): a bias per
            expert, added for selection only, moves by this much a training step towards the
            mean load.
        map_shape, stride, border, reduction, renormalize, nonfinite, backend: as in ``route``.
    """

    selection_bias: torch.Tensor

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int = 2,
        *,
        group_size: int | None = 3,
        sigma: float | None = 1.0,
        map_shape: tuple[int, int] | None = None,
        stride: int = 1,
        border: str = "valid",
        reduction: str = "token_mean",
        renormalize: bool = True,
        noise: bool = False,
        bias_update_rate: float = 0.0,
        nonfinite: str = "error",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {hidden_size!r}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be from 1 to num_experts={num_experts}, got {top_k!r}")
        rows, cols = resolve_map_shape(map_shape, num_experts)
        self.topography: Topography | None = None
        self._taps: torch.Tensor | None = None  # float64 on the CPU: .to(dtype) must not touch it
        self.sigma = sigma
        self.group_size = group_size
        if group_size is not None:
            self.topography = Topography(rows, cols, group_size, stride, border, reduction)
            self._taps = gaussian_taps(group_size, sigma)
        self.num_experts, self.top_k, self.map_shape = num_experts, top_k, (rows, cols)
        self.renormalize, self.noise = renormalize, noise
        self.bias_update_rate, self.nonfinite, self.backend = bias_update_rate, nonfinite, backend
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.register_buffer("selection_bias", torch.zeros(num_experts))

    def set_sigma(self, sigma: float | None) -> None:
        """Change the width of the filter in place; a compiled router is not recompiled."""
        if self._taps is None:
            raise ValueError("this router has group_size=None: there is no filter to widen")
        self._taps.copy_(gaussian_taps(self._taps.numel(), sigma))
        self.sigma = sigma

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gate's logits, (T, N), float32 (float64 if the gate is float64)."""
        dtype = torch.float64 if self.gate.weight.dtype == torch.float64 else torch.float32
        with torch.autocast(device_type=x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.gate.weight.to(dtype))

    def forward(self, x: torch.Tensor) -> Routing:
        """Route ``x``, (T, hidden_size); ValueError for another shape."""
        if x.dim() != 2 or x.shape[1] != self.gate.in_features:
            raise ValueError(
                f"x must have shape (num_tokens, hidden_size={self.gate.in_features}), "
                f"got {tuple(x.shape)}"
            )
        logits = self.logits(x)
        routing = route_with_taps(
            logits, self._taps, self.topography, self.top_k, renormalize=self.renormalize,
            noise=self._selection_noise(logits), nonfinite=self.nonfinite, backend=self.backend,
        )  # fmt: skip
        if self.training and self.bias_update_rate:
            self._nudge_bias(routing.load)
        return routing

    def _selection_noise(self, logits: torch.Tensor) -> torch.Tensor | None:
        noise = None
        if self.training and self.noise:
            noise = torch.randn_like(logits) / self.num_experts
        if self.bias_update_rate:
            bias = self.selection_bias.to(logits.dtype).expand_as(logits)
            noise = bias if noise is None else noise + bias
        return noise

    @torch.no_grad()
    def _nudge_bias(self, load: torch.Tensor) -> None:
        load = load.to(self.selection_bias.dtype)
        self.selection_bias.add_(self.bias_update_rate * torch.sign(load.mean() - load))

    def extra_repr(self) -> str:
        """Show the settings that decide the routing."""
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, map_shape={self.map_shape}, "
            f"group_size={self.group_size}, sigma={self.sigma}"
        )
