"""The annealed width of the group filter (docs/method.md "Sigma schedule")."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import nn


class SigmaSchedule:
    """sigma(t) = start - (start - end) * (t / T)^gamma for optimiser step t, clamped at the end.

    A wide filter early (whole neighbourhoods act as one group), a narrow one late. The value of
    a step depends on nothing but the step, so a resumed run needs no saved state.

    Args:
        start, end: sigma_0 and sigma_1, in map cells, > 0.
        gamma: exponent, > 0.
        total_steps: T, optimiser steps of the whole run, >= 1.

    Raises:
        ValueError: naming the argument that is no number or out of range.
    """

    def __init__(
        self, start: float = 10.0, end: float = 1.0, gamma: float = 0.2, *, total_steps: int
    ) -> None:
        for name, value in (("start", start), ("end", end), ("gamma", gamma)):
            if not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if not (_is_number(total_steps) and 1 <= total_steps < math.inf):
            raise ValueError(f"total_steps must be at least 1, got {total_steps!r}")
        self.start, self.end, self.gamma, self.total_steps = start, end, gamma, total_steps

    def sigma(self, step: int) -> float:
        """Return sigma for optimiser step ``step`` (0-based); ``end`` from total_steps on."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step!r}")
        progress = min(step / self.total_steps, 1.0)
        return self.start - (self.start - self.end) * progress**self.gamma

    def apply(self, module: nn.Module, step: int) -> float:
        """Set sigma(step) on every filter inside ``module``; return it.

        A filter is that of a TopographicRouter with groups, or of any module with ``group_size``
        and ``set_sigma``. Raises ValueError if ``module`` has none.
        """
        sigma = self.sigma(step)
        filters = [child for child in module.modules() if _has_filter(child)]
        if not filters:
            raise ValueError(
                f"module must have a TopographicRouter with a group_size, {type(module).__name__} "
                "has none: the schedule would change nothing. The sigma of an attached loss is set "
                "by its handle: handle.set_step(step)"
            )
        for child in filters:
            child.set_sigma(sigma)  # type: ignore[operator]
        return sigma


def _has_filter(module: nn.Module) -> bool:
    return getattr(module, "group_size", None) is not None and hasattr(module, "set_sigma")


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a number of Python's or numpy's; a string or None is not."""
    return isinstance(value, Real) and not isinstance(value, bool)
