"""How experts are chosen and weighed, as one checked value (docs/method.md "Wider routing").

Legend: N experts, k chosen.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from moge_bench.ops.topography import check_flag

SCORE_FUNCTIONS = ("softmax", "sigmoid", "sqrtsoftplus")


def check_top_k(top_k: int, num_experts: int) -> None:
    """Check that 1 <= top_k <= num_experts."""
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int, got {top_k!r}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be from 1 to num_experts={num_experts}, got {top_k}")


@dataclass(frozen=True)
class Choice:
    """What stands between the logits and the chosen experts with their weights.

    Args:
        num_experts, top_k: N and k, 1 <= k <= N.
        renormalize: divide the k weights of a token by their sum.
        score_function: z of the logits x: "softmax", "sigmoid" or "sqrtsoftplus",
            sqrt(log(1 + exp x)).
        num_groups, top_groups: the N experts are ``num_groups`` equal consecutive ranges, and only
            experts of the best ``top_groups`` of them can be chosen. 1 of 1 is no limit.
        scale: what every weight is multiplied by at last, > 0.

    Raises:
        TypeError, ValueError: naming the argument, what came and what would work.
    """

    num_experts: int
    top_k: int
    renormalize: bool = True
    score_function: str = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    as_ints: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_top_k(self.top_k, self.num_experts)
        check_flag("renormalize", self.renormalize)
        if self.score_function not in SCORE_FUNCTIONS:
            raise ValueError(
                f"score_function must be one of {SCORE_FUNCTIONS}, got {self.score_function!r}"
            )
        self._check_groups()
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)):
            raise TypeError(f"scale must be a number, got {self.scale!r}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale!r}")
        # What the ops take as ``choice`` (csrc/plan.h).
        function = SCORE_FUNCTIONS.index(self.score_function)
        as_ints = (
            self.top_k, int(self.renormalize), function, self.num_groups, self.top_groups
        )  # fmt: skip
        object.__setattr__(self, "as_ints", as_ints)

    def _check_groups(self) -> None:
        for name in ("num_groups", "top_groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_groups must divide num_experts={self.num_experts}, got {self.num_groups}"
            )
        if self.top_groups > self.num_groups or self.top_k % self.top_groups:
            raise ValueError(
                f"top_groups must be at most num_groups={self.num_groups} and divide "
                f"top_k={self.top_k}, got {self.top_groups}"
            )
        if self.top_k > self.top_groups * self.group_width:
            raise ValueError(
                f"top_groups={self.top_groups} ranges of {self.group_width} experts hold fewer "
                f"than top_k={self.top_k}: take more ranges or fewer of them in all"
            )

    @property
    def group_width(self) -> int:
        """Experts in one of the ranges."""
        return self.num_experts // self.num_groups

    @property
    def limited(self) -> bool:
        """Whether some experts cannot be chosen for where they stand."""
        return self.top_groups < self.num_groups


_remembered = functools.lru_cache(maxsize=256, typed=True)(Choice)  # typed: True is no top_k


def make_choice(*arguments: Any) -> Choice:
    """Return ``Choice(*arguments)``, remembered: a router is called with the same ones again."""
    if not torch.compiler.is_compiling():
        try:
            return _remembered(*arguments)
        except TypeError:  # an argument that cannot be hashed, or the error that is raised again
            pass
    return Choice(*arguments)
