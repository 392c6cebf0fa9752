"""The settings of a router as one object, declared, documented and checked in one place."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from moge_bench.ops.choice import Choice
from moge_bench.ops.extension import BACKENDS
from moge_bench.ops.topography import (
    AUTO_GROUP,
    Topography,
    check_flag,
    resolve_group_size,
    resolve_map_shape,
    tap_values,
)
from moge_bench.ops.validation import check_nonfinite

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class RouterSettings:
    """What decides the routing of a ``TopographicRouter``, but for the width of its tokens.

    Args:
        num_experts: N, 1 to 1024.
        top_k: k, 1 to N.
        group_size: h; None for a plain MoE router, which computes no group norm; "auto" for 3,
            or the largest below it that fits the map.
        sigma: width of the filter, changed during training by ``set_sigma`` (SigmaSchedule).
        noise: in training, add Normal(0, 1) / N to the logits for selection.
        bias_update_rate: > 0 turns on auxiliary-loss-free balancing.
        shuffled: the control without topography: the group loss is of scores[:, places], places
            being drawn anew by ``shuffle_places``, once an optimiser step. Nothing else changes.
        map_shape, stride, border, reduction, unit_energy, renormalize, score_function, num_groups,
            top_groups, scale, nonfinite, backend: as in ``moge_bench.route``.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """

    num_experts: int
    top_k: int = 2
    _: KW_ONLY
    group_size: int | str | None = AUTO_GROUP
    sigma: float | None = 1.0
    map_shape: tuple[int, int] | None = None
    stride: int = 1
    border: str = "valid"
    reduction: str = "token_mean"
    unit_energy: bool = False
    shuffled: bool = False
    renormalize: bool = True
    score_function: str = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    noise: bool = False
    bias_update_rate: float = 0.0
    nonfinite: str = "error"
    backend: str = "auto"

    def __post_init__(self) -> None:
        rows, cols = resolve_map_shape(self.map_shape, self.num_experts)
        self.choice  # noqa: B018  # checks what it is made of
        check_flag("shuffled", self.shuffled)
        check_flag("noise", self.noise)
        self._check_weights("bias_update_rate")
        check_nonfinite(self.nonfinite)
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {self.backend!r}")
        object.__setattr__(self, "map_shape", (rows, cols))
        if self.shuffled and self.group_size is None:
            raise ValueError("shuffled=True needs groups to take places in, got group_size=None")
        if self.topography is not None:
            tap_values(self.topography.group_size, self.sigma)  # checks sigma

    @property
    def topography(self) -> Topography | None:
        """The map and its groups, h resolved; None for a plain MoE router."""
        if self.group_size is None:
            return None
        rows, cols = resolve_map_shape(self.map_shape, self.num_experts)
        side = resolve_group_size(self.group_size, rows, cols, self.border)
        return Topography(
            rows, cols, side, self.stride, self.border, self.reduction, self.unit_energy
        )

    @property
    def choice(self) -> Choice:
        """How experts are chosen and weighed."""
        return Choice(
            self.num_experts, self.top_k, self.renormalize, self.score_function, self.num_groups,
            self.top_groups, self.scale,
        )  # fmt: skip

    def _check_weights(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")

    @classmethod
    def of(cls, num_experts: int, top_k: int, given: dict[str, Any]) -> Self:
        """Return the settings; TypeError for a name in ``given`` that is none of them."""
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                close = get_close_matches(name, names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {names}"
                raise TypeError(f"{name!r} is not one of the {cls.__name__}; {hint}")
        return cls(num_experts, top_k, **given)

    def keywords(self, kind: type[RouterSettings]) -> dict[str, Any]:
        """Return those that ``kind`` has too, as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(kind)}
