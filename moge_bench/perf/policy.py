"""How the performance gate decides: its parameters. No library is needed to read the defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """How the gate decides.

    Args:
        blocks: palindromic blocks per case and generation.
        generations: worker generations before the first verdict, and between later ones.
        max_generations: the limit; a case still undecided there fails as inconclusive. What
            looks like a regression is confirmed by as many generations as one look has, beyond it.
        false_alarms: chance that an unchanged tree is called a regression by time, in one run,
            over all cases and looks together.
        resolution: the slowdown that processor time must be able to see for a pass to mean
            something.
        wall_resolution: the same for wall time, which other load disturbs far more; it is there
            to see parallelism lost, a factor of 2 on two threads.
        instruction_threshold: ratio of exact counts above which head is a regression.
    """

    blocks: int = 20
    generations: int = 4
    max_generations: int = 32
    false_alarms: float = 1e-3
    resolution: float = 0.10
    wall_resolution: float = 0.90
    instruction_threshold: float = 1.02

    def __post_init__(self) -> None:
        if self.blocks < 4:
            raise ValueError(f"blocks must be at least 4, got {self.blocks}")
        if not 2 <= self.generations <= self.max_generations:
            raise ValueError(
                "generations must be at least 2 and at most max_generations, got "
                f"{self.generations} and {self.max_generations}"
            )
        if not self.instruction_threshold >= 1:
            raise ValueError(
                f"instruction_threshold must be at least 1, got {self.instruction_threshold}"
            )
        if self.resolution <= 0 or not 0 < self.false_alarms < 0.5:
            raise ValueError(
                "resolution must be positive and false_alarms between 0 and 0.5, got "
                f"{self.resolution} and {self.false_alarms}"
            )

    @property
    def looks(self) -> int:
        """How often a case can be judged before the limit."""
        return -(-self.max_generations // self.generations)
