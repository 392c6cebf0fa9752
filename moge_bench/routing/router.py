"""The router module: a linear gate in float32 and the fused topographic top-k of ops/route.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from moge_bench.ops import masking
from moge_bench.ops.count_load import count_load
from moge_bench.ops.extension import warn_once
from moge_bench.ops.group_norm import group_norm_with_taps
from moge_bench.ops.route import Routing, route_with_taps
from moge_bench.ops.topography import (
    AUTO_GROUP,
    as_int,
    gaussian_taps,
    moved_taps,
    resolve_map_shape,
)
from moge_bench.ops.validation import check_mask, check_matrix, is_exporting
from moge_bench.routing.filter_width import FilterWidth
from moge_bench.routing.gate import Gate, gate_logits
from moge_bench.routing.settings import RouterSettings

if TYPE_CHECKING:
    from typing_extensions import Self


class TopographicRouter(FilterWidth):
    """Route tokens to experts laid out on a map, and measure the group norm of their scores.

    logits = x W^T in float32 whatever the model's dtype (docs/method.md "Routing" 1); the rest is
    ``moge_bench.route``, whose arguments keep their names here.

    Args:
        hidden_size: width d of a token.
        num_experts, top_k: N and k.
        settings: by keyword, as in ``RouterSettings``: group_size, sigma, map_shape, stride,
            border, reduction, unit_energy, shuffled, renormalize, score_function, num_groups,
            top_groups, scale, noise, bias_update_rate, nonfinite, backend. A group_size="auto"
            below 3 is said once. With a bias_update_rate > 0 (DeepSeek-V3) top-k is of
            f(x + noise) + selection_bias, weights and losses are of the scores f(x) alone. A
            forward pass in training only counts; ``update_selection_bias``, called once an
            optimiser step, moves the bias by this much towards the mean load.

    ``gate`` is called as a module, in float32 and outside autocast: hooks on it fire, and it may
    be wrapped or replaced by any module from (T, hidden_size) to (T, num_experts).

    State: ``selection_bias``, (N,), float32 whatever the module is cast to, is in the state dict.
    Not in it are the counts of the step that is under way, nor sigma and ``places``, (N,) int64 or
    None, which the step alone decides (SigmaSchedule, shuffle_places): MoE and MoGE have the same
    state dict. Version 1 of it held a bias that was added to the logits; it is loaded with a
    warning.
    """

    _version = 2
    selection_bias: torch.Tensor

    def __init__(self, hidden_size: int, num_experts: int, top_k: int = 2, **settings: Any) -> None:
        super().__init__()
        hidden_size = as_int("hidden_size", hidden_size)
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {hidden_size!r}")
        s = RouterSettings.of(num_experts, top_k, settings)
        self.topography = s.topography
        self._taps: torch.Tensor | None = None  # float64: see _apply
        self._sigma = s.sigma
        self.map_shape = rows, cols = resolve_map_shape(s.map_shape, num_experts)
        if self.topography is not None:
            side = self.topography.group_size
            self._taps = gaussian_taps(side, s.sigma)
            if s.group_size == AUTO_GROUP and side < 3:
                warn_once(
                    f"group_size='auto' is {side} here: groups of 3x3 do not fit the {rows}x{cols} "
                    f"map of {num_experts} experts with border='valid'"
                )
        self.group_size = None if self.topography is None else self.topography.group_size
        if top_k == 1 and s.renormalize and num_experts > 1:
            warn_once(
                "top_k=1 with renormalize=True gives a token's one expert the same weight whatever "
                "its score: the router gets no gradient of the task; pass renormalize=False"
            )
        self.hidden_size, self.num_experts = hidden_size, num_experts
        self.choice, self.noise = s.choice, s.noise
        self.bias_update_rate, self.nonfinite, self.backend = (
            s.bias_update_rate, s.nonfinite, s.backend,
        )  # fmt: skip
        self.gate = Gate(hidden_size, num_experts)
        self.register_buffer("selection_bias", torch.zeros(num_experts, dtype=torch.float32))
        # No buffer: DDP overwrites buffers with rank 0's before every forward pass.
        self._load_counts = torch.zeros(num_experts, dtype=torch.int64)
        # Places of the experts on the map, (N,) int64: None unless they are shuffled.
        self.places = torch.arange(num_experts, device="cpu") if s.shuffled else None

    @classmethod
    def from_settings(cls, hidden_size: int, settings: RouterSettings) -> Self:
        """Return the router of ``settings``, those of a layer too, for tokens of hidden_size."""
        return cls(hidden_size, **settings.keywords(RouterSettings))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the gate anew, and set bias, counts and filter as a fresh router has them.

        After ``to_empty``, from the meta device too, nothing is left as it was allocated.
        """
        for module in self.gate.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        self.selection_bias.zero_()
        self._load_counts.zero_()
        if self._taps is not None:
            self.set_sigma(self.sigma)
        if self.places is not None:
            self.places.copy_(torch.arange(self.num_experts, device="cpu"))

    @property
    def top_k(self) -> int:
        """k, as the router was made."""
        return self.choice.top_k

    def _change_sigma(self, sigma: float | None) -> None:
        if self._taps is None:
            raise ValueError("this router has group_size=None: there is no filter to widen")
        self._taps.copy_(gaussian_taps(self._taps.numel(), sigma), non_blocking=True)
        self._sigma = sigma

    def shuffle_places(self, generator: torch.Generator) -> None:
        """Draw the experts' places on the map anew, in place, from ``generator``, one of the CPU.

        Once an optimiser step, with a generator that the step alone seeds: then ranks agree and a
        resumed run draws the same. As with ``set_sigma`` nothing is compiled or captured again.
        """
        if self.places is None:
            raise ValueError("this router has shuffled=False: its experts keep their places")
        drawn = torch.randperm(self.num_experts, generator=generator, device="cpu")
        self.places.copy_(drawn, non_blocking=True)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gate's logits, (T, N), float32 (float64 if the gate is float64)."""
        return gate_logits(self.gate, x)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Routing:
        """Route ``x``, (T, hidden_size); ``mask``, (T,) bool: the tokens that count, as in route.

        ValueError for another shape. A token that does not count and is not finite is routed as
        one of zeros, so that it reaches no gradient.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() != 2 or x.shape[1] != self.hidden_size:
            raise ValueError(
                f"x must have shape (num_tokens, hidden_size={self.hidden_size}), "
                f"got {tuple(x.shape)}"
            )
        check_mask(mask, x, "x", 1)
        logits = self.logits(masking.routable_rows(x, mask))
        self._follow(logits.device)
        noise = None
        if self.training and self.noise:
            noise = torch.randn_like(logits) / self.num_experts
        check_matrix("logits", logits)
        if logits.shape[1] != self.num_experts:
            raise ValueError(
                f"gate must return (num_tokens, num_experts={self.num_experts}), "
                f"got {tuple(logits.shape)}"
            )
        in_place = self.places is None
        routing = route_with_taps(
            logits, self._taps if in_place else None, self.topography if in_place else None,
            self.choice, noise=noise, nonfinite=self.nonfinite, backend=self.backend, mask=mask,
            bias=self.selection_bias.clone() if self.bias_update_rate else None,
        )  # fmt: skip
        if self.places is not None and self._taps is not None and self.topography is not None:
            # "propagate": finite logits, which were checked, have finite scores.
            routing.group_loss = group_norm_with_taps(
                routing.scores.index_select(1, self.places), self._taps, self.topography,
                mask=mask, nonfinite="propagate", backend=self.backend,
            )  # fmt: skip
        if self.training and self.bias_update_rate:
            self._count(routing.load)
        return routing

    def _count(self, load: torch.Tensor) -> None:
        if is_exporting() or load.is_meta:  # a program or a shape trains nothing
            return
        if self._load_counts.is_meta:
            self._load_counts = torch.zeros_like(load)
        elif self._load_counts.device != load.device:
            self._load_counts = self._load_counts.to(load.device)
        count_load(self._load_counts, load)

    def take_load_counts(self) -> torch.Tensor:
        """Return the choices per expert that this rank counted, (N,) int64, and start anew.

        Those of forward passes in training, each once however often it is recomputed.
        """
        counts = self._load_counts.clone()
        self._load_counts.zero_()
        return counts

    @torch.no_grad()
    def move_selection_bias(self, load: torch.Tensor) -> None:
        """Add bias_update_rate * sign(mean load - load) to the bias; ``load`` (N,) int64."""
        self._keep_bias_float32()
        above_mean = load.sum() - self.num_experts * load  # in int64: its sign is exact
        step = self.bias_update_rate * torch.sign(above_mean).to(torch.float32)
        self.selection_bias.add_(step.to(self.selection_bias.device))

    def _keep_bias_float32(self, exact: torch.Tensor | None = None) -> None:
        bias = self.selection_bias
        if bias.dtype != torch.float32:
            source = bias if exact is None or exact.is_meta else exact
            self.selection_bias = source.to(bias.device, torch.float32)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # .to(dtype), .half() and the like: the bias stays what it was, in float32, the filter in
        # float64.
        bias = self.selection_bias
        super()._apply(fn, recurse)
        self._keep_bias_float32(bias)
        counts = fn(self._load_counts)
        # Of the meta device there is nothing to keep, and to_empty fills with anything.
        self._load_counts = torch.zeros_like(counts) if self._load_counts.is_meta else counts
        self._follow(self.selection_bias.device)
        return self

    def _follow(self, device: torch.device) -> None:
        """Move what is no buffer to ``device``: FSDP and accelerate move parameters and buffers."""
        if self._taps is not None and self._taps.device != device:
            taps = self._taps
            if taps.is_meta:  # torch.load(map_location="meta")
                taps = gaussian_taps(taps.numel(), self._sigma)
            self._taps = moved_taps(taps, device)
        if self.places is not None and self.places.device != device:
            places = self.places
            if places.is_meta:
                places = torch.arange(self.num_experts, device="cpu")
            self.places = moved_taps(places, device)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        self._keep_bias_float32()
        saved = state_dict.get(f"{prefix}selection_bias")
        old = local_metadata.get("version") == 1
        if old and saved is not None and not saved.is_meta and bool(saved.any()):
            warn_once(
                f"{prefix}selection_bias was saved by version 1, which added it to the logits; it "
                "is added to the scores now, so set it to zero or expect another balance"
            )

    def extra_repr(self) -> str:
        """Show the settings that decide the routing."""
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, map_shape={self.map_shape}, "
            f"group_size={self.group_size}, sigma={self.sigma}"
        )
