"""When a run is given up: a result that is counted, not a crash."""

from __future__ import annotations

import math

TIMES = 3.0  # of its first value
SHARE = 0.05  # of all steps, in a row


class Diverged(Exception):
    """The training loss is NaN or infinite, or has stayed far above its start.

    ``step`` is the optimiser step, counted from 1, at which the run was given up.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"diverged at step {step}: {reason}")
        self.step, self.reason = step, reason


def check_objective(step: int, objective: float) -> None:
    """Raise Diverged if the objective of optimiser step ``step`` is NaN or infinite."""
    if not math.isfinite(objective):
        raise Diverged(step, f"the training loss is {objective}")


class DivergenceWatch:
    """Watches the training loss of a run of ``steps`` optimiser steps."""

    def __init__(self, steps: int) -> None:
        self._patience = max(math.ceil(SHARE * steps), 1)
        self.first: float | None = None
        self.above = 0

    def check(self, step: int, loss: float) -> None:
        """Take the loss of optimiser step ``step``; raises Diverged when the run is lost.

        That is when it is not finite, or has been above ``TIMES`` the loss of the first step for
        ``SHARE`` of all steps in a row.
        """
        check_objective(step, loss)
        if self.first is None:
            self.first = loss
        self.above = self.above + 1 if loss > TIMES * self.first else 0
        if self.above >= self._patience:
            raise Diverged(
                step,
                f"the training loss was above {TIMES:g} times its start, {self.first:.4g}, for "
                f"{self.above} steps in a row",
            )
