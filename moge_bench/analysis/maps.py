"""Geometry of a map of experts: distances, neighbours, groups. Experts are numbered row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moge_bench.ops.topography import AUTO_GROUP, Topography, group_filter, resolve_group_size

DEFAULT_BORDER = "torus"
_SIGMA = 1.0  # of the filter that all arms are measured with


@dataclass(frozen=True)
class Map:
    """Where the N experts of one layer lie.

    ``border``: that of the run's group loss; of a run that has none the torus, on which all places
    are alike. Groups have side 3 and stride 1 whatever the run's were, so that arms can be
    compared; on a map that is too narrow the largest side that fits.
    """

    rows: int
    cols: int
    border: str = DEFAULT_BORDER

    @property
    def group_size(self) -> int:
        """Side of a group."""
        return resolve_group_size(AUTO_GROUP, self.rows, self.cols, self.border)

    @property
    def num_experts(self) -> int:
        """N."""
        return self.rows * self.cols

    @cached_property
    def distances(self) -> np.ndarray:
        """Chebyshev distances of the experts, (N, N) int64; on a torus the shorter way round."""
        row, col = np.divmod(np.arange(self.num_experts), self.cols)
        down, across = (np.abs(place[:, None] - place) for place in (row, col))
        if self.border == "torus":
            down = np.minimum(down, self.rows - down)
            across = np.minimum(across, self.cols - across)
        return np.maximum(down, across)

    @cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """The ordered pairs of experts at distance 1: two arrays, (pairs,) int64."""
        first, second = np.nonzero(self.distances == 1)
        return first, second

    @cached_property
    def windows(self) -> np.ndarray:
        """The experts of each group, (P, h * h) int64; h > rows on a torus names one twice."""
        size = self.group_size
        groups = Topography(self.rows, self.cols, size, 1, self.border)
        row, col = np.divmod(np.arange(groups.num_groups), groups.group_cols)
        u, v = np.divmod(np.arange(size * size), size)
        rows = (row[:, None] + u) % self.rows
        cols = (col[:, None] + v) % self.cols
        return rows * self.cols + cols

    @cached_property
    def membership(self) -> np.ndarray:
        """Which expert is in which group, (N, P) bool."""
        member = np.zeros((self.num_experts, len(self.windows)), dtype=bool)
        member[self.windows, np.arange(len(self.windows))[:, None]] = True
        return member

    @cached_property
    def shared_groups(self) -> np.ndarray:
        """Groups that hold both experts over groups that hold either, (N, N) float64; 1 for itself.

        On a torus with h = 3, one step along a row leaves 6 of 9 and 9: 6 / 12 = 1/2.
        """
        member = self.membership.astype(np.float64)
        both = member @ member.T
        own = np.diag(both)
        either = own[:, None] + own - both
        shared = both / np.maximum(either, 1.0)
        np.fill_diagonal(shared, 1.0)
        return shared

    @cached_property
    def filter(self) -> np.ndarray:
        """G of docs/method.md with sigma 1, per group: (N, P) float64, columns sum to 1."""
        weights = group_filter(self.group_size, _SIGMA).numpy().ravel()
        found = np.zeros((self.num_experts, len(self.windows)))
        for expert, weight in zip(self.windows.T, weights, strict=True):
            np.add.at(found, (expert, np.arange(len(self.windows))), weight)
        return found
