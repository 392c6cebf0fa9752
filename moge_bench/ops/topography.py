"""The topographic map: its shape, its overlapping groups, their Gaussian filter (docs/method.md).

Lowest layer of the package: it imports nothing of it. Legend: r, c rows and columns of the map
(r * c = N experts), h side of a group, s stride between groups, P number of groups.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch

EPS = 1e-8
BORDERS = ("valid", "torus")
AUTO_GROUP = "auto"
_AUTO_GROUP_SIZE = 3
REDUCTIONS = ("token_mean", "official_image", "official_language")
MAX_EXPERTS = 1024


def check_flag(name: str, value: bool) -> None:
    """Check that ``value`` is True or False: "no" and 0.1 would be taken for True."""
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's, and an older numpy's
        raise TypeError(f"{name} must be True or False, got {value!r}")


def as_int(name: str, value: Any) -> int:
    """Return ``value``, an int of Python's, numpy's or another kind, as an int; else TypeError."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an int, got {value!r}")


def default_map_shape(num_experts: int) -> tuple[int, int]:
    """Return the factor pair (r, c) of ``num_experts`` closest to square with r <= c.

    8 -> (2, 4), 16 -> (4, 4), 64 -> (8, 8), a prime p -> (1, p).
    """
    if not isinstance(num_experts, int) or not 1 <= num_experts <= MAX_EXPERTS:
        raise ValueError(f"num_experts must be an int from 1 to {MAX_EXPERTS}, got {num_experts!r}")
    # Not math.isqrt, which torch.compile cannot trace where the shapes are dynamic.
    side = math.isqrt(MAX_EXPERTS)
    rows = max(r for r in range(1, side + 1) if r * r <= num_experts and num_experts % r == 0)
    return rows, num_experts // rows


def tap_values(group_size: int, sigma: float | None) -> tuple[float, ...]:
    """Return the h values of ``gaussian_taps``, which says what they are and what is refused."""
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(
            f"group_size must be an int >= 1, got {group_size!r}; 'auto' is for what knows the "
            "number of experts: group_norm, route, a router or a layer"
        )
    if sigma is None:
        return (1.0 / group_size,) * group_size
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)):
        raise TypeError(f"sigma must be a positive number or None (box), got {sigma!r}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, or None for a box, got {sigma!r}")
    # The centre tap is exp(0) = 1, so the sum is at least 1; d * d overflows to inf, never raises.
    offsets = [(u - group_size // 2) / sigma for u in range(group_size)]
    taps = [math.exp(-d * d / 2) for d in offsets]
    total = math.fsum(taps)
    return tuple([tap / total for tap in taps])


def taps_tensor(values: tuple[float, ...]) -> torch.Tensor:
    """Return ``tap_values`` as the ops take them: (h,), float64, on the CPU."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def taps_on_device(group_size: int, sigma: float | None, device: torch.device) -> torch.Tensor:
    """Return ``gaussian_taps`` made on ``device`` without a copy to it.

    What is recorded there, by a CUDA graph or a compiler, then holds without the host.
    """
    if sigma is None:
        return torch.full((group_size,), 1.0 / group_size, dtype=torch.float64, device=device)
    width = torch.full((), sigma, dtype=torch.float64, device=device)
    return taps_of_width(group_size, width, device)


def taps_of_width(group_size: int, sigma: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``gaussian_taps`` on ``device``, computed from ``sigma``, (), so that it can change.

    No value is read and nothing waits for a device, so a graph holds for every sigma; whether it
    is positive and finite is for the caller to check.
    """
    sigma = sigma.to(device=device, dtype=torch.float64, non_blocking=device.type != "cpu")
    offsets = torch.arange(group_size, dtype=torch.float64, device=device) - group_size // 2
    taps = torch.exp(-((offsets / sigma) ** 2) / 2)
    return taps / taps.sum()


def gaussian_taps(group_size: int, sigma: float | None) -> torch.Tensor:
    """Return the 1-D filter g, shape (h,), float64, on the CPU; it sums to 1.

    docs/method.md's G[u, v] is separable: G[u, v] = g[u] * g[v] with g[u] proportional to
    exp(-(u - floor(h/2))^2 / (2 sigma^2)). ``sigma=None`` gives the box filter 1/h.
    Raises ValueError for group_size < 1 or sigma not a positive finite number.
    """
    return taps_tensor(tap_values(group_size, sigma))


def moved_taps(taps: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a module's ``taps`` where its other tensors went, the same tensor if they stayed.

    Those of a module on the meta device stay on the CPU: to_empty would lose them.
    """
    target = device if device.type != "meta" else torch.device("cpu")
    if taps.device == target:
        return taps
    if torch.compiler.is_compiling():
        return taps.to(target)
    with torch.inference_mode(False):  # they are kept, and training goes on with them
        return taps.to(target)


def group_filter(group_size: int, sigma: float | None) -> torch.Tensor:
    """Return docs/method.md's G, shape (h, h), float64, summing to 1."""
    taps = gaussian_taps(group_size, sigma)
    return torch.outer(taps, taps)


@dataclass(frozen=True)
class Topography:
    """Where the groups lie on the map, and how their norms are reduced to one loss.

    Args:
        rows, cols: the map; row-major, rows * cols = N.
        group_size: h, the side of one square group.
        stride: s, the distance between neighbouring groups.
        border: "valid" keeps windows that lie wholly on the map; "torus" takes indices modulo
            rows and cols, so a window larger than the map wraps onto itself.
        reduction: "token_mean" | "official_image" | "official_language" (docs/method.md).
        unit_energy: divide every token's scores by their norm first (docs/method.md "A repair:
            unit energy").

    Raises:
        ValueError: a size below 1, an unknown border or reduction, or a group that does not fit
            the map; the message names the largest group that fits.
    """

    rows: int
    cols: int
    group_size: int
    stride: int = 1
    border: str = "valid"
    reduction: str = "token_mean"
    unit_energy: bool = False
    as_ints: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "group_size", "stride"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.border not in BORDERS:
            raise ValueError(f"border must be one of {BORDERS}, got {self.border!r}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {self.reduction!r}")
        check_flag("unit_energy", self.unit_energy)
        largest = min(self.rows, self.cols)
        if self.border == "valid" and self.group_size > largest:
            raise ValueError(
                f"group_size={self.group_size} does not fit the {self.rows}x{self.cols} map with "
                f"border='valid'; the largest that fits is {largest} (or use border='torus')"
            )
        # What the ops take as ``groups`` (csrc/plan.h); group_size is the length of the taps.
        torus, reduction = self.border == "torus", REDUCTIONS.index(self.reduction)
        as_ints = (self.rows, self.cols, self.stride, int(torus), reduction, int(self.unit_energy))
        object.__setattr__(self, "as_ints", as_ints)

    @property
    def group_rows(self) -> int:
        """Number of groups down the map."""
        span = self.rows if self.border == "torus" else self.rows - self.group_size + 1
        return -(-span // self.stride)

    @property
    def group_cols(self) -> int:
        """Number of groups across the map."""
        span = self.cols if self.border == "torus" else self.cols - self.group_size + 1
        return -(-span // self.stride)

    @property
    def num_groups(self) -> int:
        """P of docs/method.md."""
        return self.group_rows * self.group_cols

    def scale(self, num_tokens: int) -> float:
        """Return the factor that turns the sum of all group norms into the loss.

        token_mean: 1 / (T P), and 0 for T = 0, so that an empty batch adds nothing;
        official_image: 1 / (h^2 P); official_language: 1 / P.
        """
        if self.reduction == "token_mean":
            return 1.0 / (num_tokens * self.num_groups) if num_tokens else 0.0
        if self.reduction == "official_image":
            return 1.0 / (self.group_size**2 * self.num_groups)
        return 1.0 / self.num_groups


def resolve_group_size(group_size: int | str, rows: int, cols: int, border: str) -> int:
    """Return ``group_size``, or for "auto" the paper's 3, or the largest below it that fits.

    So 2 on the 2x4 map of 8 experts, and 1 for a prime number of them; "torus" holds any group.
    """
    if group_size != AUTO_GROUP:
        return group_size  # type: ignore[return-value]  # checked where it is used
    return _AUTO_GROUP_SIZE if border == "torus" else min(_AUTO_GROUP_SIZE, rows, cols)


def resolve_map_shape(map_shape: tuple[int, int] | None, num_experts: int) -> tuple[int, int]:
    """Return ``map_shape``, or the default map for None; ValueError if it does not hold N."""
    if map_shape is None:
        return default_map_shape(num_experts)
    shape = tuple(map_shape) if isinstance(map_shape, (tuple, list)) else ()
    if len(shape) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise TypeError(f"map_shape must be two ints (rows, cols), got {map_shape!r}")
    rows, cols = shape
    if rows < 1 or cols < 1 or rows * cols != num_experts:
        raise ValueError(
            f"map_shape={shape} does not hold num_experts={num_experts}; "
            f"rows * cols must equal it, e.g. {default_map_shape(num_experts)}"
        )
    return rows, cols
