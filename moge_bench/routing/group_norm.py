"""The group-sparse loss as a module whose filter anneals (docs/method.md "Sigma schedule")."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from moge_bench.ops.group_norm import group_norm_with_taps
from moge_bench.ops.topography import Topography, gaussian_taps, moved_taps
from moge_bench.ops.validation import check_matrix, make_groups
from moge_bench.routing.filter_width import FilterWidth


class GroupNorm(FilterWidth):
    """``moge_bench.group_norm`` as a module: ``loss = GroupNorm(sigma=10.0)(scores)``.

    ``set_sigma`` changes the filter in place: compiled code takes it without compiling again, and a
    captured CUDA graph without being captured again. The filter lies on the module's device (that
    of the first scores, if the module is never moved) and stays float64 under ``.to(...)``; it is
    no buffer: DDP would send it before every forward pass. sigma is in the ``state_dict``, as a
    float64 tensor (), NaN for a box filter.

    Args:
        group_size: h, an int.
        sigma: a number, or None for a box filter.
        map_shape, stride, border, reduction, unit_energy, nonfinite, backend: as in
            ``group_norm``.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """

    def __init__(
        self,
        group_size: int = 3,
        sigma: float | None = 1.0,
        map_shape: tuple[int, int] | None = None,
        stride: int = 1,
        border: str = "valid",
        reduction: str = "token_mean",
        unit_energy: bool = False,
        nonfinite: str = "error",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        taps = gaussian_taps(group_size, sigma)
        # One for each device that scores came from, kept: a CUDA graph may read it.
        self._taps = {taps.device: taps}
        Topography(group_size, group_size, group_size, stride, border, reduction, unit_energy)
        self.group_size, self._sigma, self.map_shape = group_size, sigma, map_shape
        self.stride, self.border, self.reduction = stride, border, reduction  # checked above
        self.unit_energy = unit_energy
        self.nonfinite, self.backend = nonfinite, backend

    def _change_sigma(self, sigma: float | None) -> None:
        taps = gaussian_taps(self.group_size, sigma)
        for kept in self._taps.values():
            kept.copy_(taps, non_blocking=True)
        self._sigma = sigma

    def forward(self, scores: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return L_group, (), of ``scores`` (T, N); ``mask`` (T,) bool: the tokens that count."""
        check_matrix("scores", scores)
        taps = self._taps_on(scores.device)
        _, topography = make_groups(
            scores, self.map_shape, self.group_size, None, self.stride, self.border,
            self.reduction, self.unit_energy,
        )  # fmt: skip
        return group_norm_with_taps(
            scores, taps, topography, mask=mask, nonfinite=self.nonfinite,
            backend=self.backend,
        )  # fmt: skip

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._taps_on(fn(torch.empty(0)).device)
        return self

    def _taps_on(self, device: torch.device) -> torch.Tensor:
        if device not in self._taps:
            taps = moved_taps(next(iter(self._taps.values())), device)
            return self._taps.setdefault(taps.device, taps)
        return self._taps[device]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch.load(map_location=...) moves the tensors and not what they are kept by.
        self._taps = {taps.device: taps for taps in self._taps.values()}
        if all(taps.is_meta for taps in self._taps.values()):
            self._taps = {torch.device("cpu"): gaussian_taps(self.group_size, self.sigma)}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        sigma = math.nan if self.sigma is None else self.sigma
        destination[prefix + "sigma"] = torch.tensor(sigma, dtype=torch.float64, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = prefix + "sigma"
        if key not in state_dict:
            missing_keys.append(key)
            return
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        sigma = float(state_dict[key])
        try:
            self.set_sigma(None if math.isnan(sigma) else sigma)
        except ValueError as error:
            error_msgs.append(f"{key}: {error}")

    def extra_repr(self) -> str:
        """Show the settings that decide the loss."""
        return (
            f"group_size={self.group_size}, sigma={self.sigma}, map_shape={self.map_shape}, "
            f"stride={self.stride}, border={self.border!r}, reduction={self.reduction!r}, "
            f"unit_energy={self.unit_energy}"
        )
