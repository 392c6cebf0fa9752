"""Invariance: how much of a token's routing survives a transformation of the input.

As a curve over the dose; each value against what chance gives, since a uniform or a collapsed
router agrees with itself whatever the input. Of a text the tokens that were not replaced and have
a replaced one before them in their window are compared: to a causal model nothing has changed for
the others. Legend: T tokens, N experts, k choices of a token.
"""

from __future__ import annotations

import numpy as np

from moge_bench.analysis.maps import Map
from moge_bench.analysis.numbers import (
    Number,
    nan_mean,
    number,
    of_block,
    p_at_least,
    permuted_values,
)
from moge_bench.analysis.probe import Layer, Probe


def measure(layer: Layer, probe: Probe) -> list[Number]:
    """Return the invariance of one layer, at every transformation ("shift_1") and their mean.

    invariance_agreement: ``agreement``, corrected for chance. invariance_cosine: mean cosine of a
    token's scores before and after; invariance_cosine_corrected: the same corrected for chance.
    invariance_group_excess: ``group_overlap`` of a lost choice less its mean under permuted maps:
    above 0 where a token that changes its expert goes to a neighbour; _p behind it, of the mean
    over transformations: the share of permutations that reach it.
    """
    place = layer.map
    names = ("agreement", "cosine", "cosine_corrected", "group_excess")
    curves: dict[str, list[float]] = {name: [] for name in names}
    found: list[Number] = []
    overlaps, permuted = [], []
    for name in probe.header.transformations:
        kept = _compared(layer, probe, name)
        before, after = layer.experts[kept], layer.array(f"{name}.experts")[kept]
        cosine, corrected = score_cosine(layer.scores[kept], layer.array(f"{name}.scores")[kept])
        overlap, under = group_overlap(before, after, place)
        overlaps.append(overlap)
        permuted.append(under)
        values = (agreement(before, after, place.num_experts), cosine, corrected,
                  overlap - under.mean())  # fmt: skip
        for key, value in zip(names, values, strict=True):
            curves[key].append(value)
            found += number(f"invariance_{key}", value, at=name)
    for key, points in curves.items():
        found += number(f"invariance_{key}", nan_mean(np.array(points)))
    known = np.isfinite(overlaps)  # not where no choice was lost
    p = np.nan
    if known.any():
        p = p_at_least(float(np.mean(np.array(overlaps)[known])), np.array(permuted)[known].mean(0))
    found += number("invariance_group_excess_p", p)
    return of_block(layer.block, found)


def _compared(layer: Layer, probe: Probe, name: str) -> np.ndarray | slice:
    """Return which tokens are compared under the transformation ``name``, (T,) bool, or all."""
    mask = probe.tensors.get(f"{name}.replaced")
    if mask is None:
        return slice(None)
    replaced = mask.numpy()
    after_one = np.cumsum(replaced.reshape(-1, probe.length_of(layer)), axis=1).ravel() > 0
    return after_one & ~replaced


def agreement(before: np.ndarray, after: np.ndarray, num_experts: int) -> float:
    """Return the mean share of ``before``, (T, k), that is in ``after``, corrected for chance.

    (a - c) / (1 - c), with c the share for two tokens drawn independently, sum_e p_e p'_e / k where
    p_e is the share of tokens that chose e: for k = 1 Cohen's kappa (1960). NaN where c = 1: one
    expert for all tokens.
    """
    tokens, top_k = before.shape
    shared = (before[:, :, None] == after[:, None, :]).sum() / (tokens * top_k)
    shares = [np.bincount(e.ravel(), minlength=num_experts) / tokens for e in (before, after)]
    return _corrected(float(shared), float(shares[0] @ shares[1]) / top_k)


def score_cosine(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the mean cosine of a token's scores, (T, N), before and after; and chance-corrected.

    Chance is the mean cosine of the scores of two tokens drawn independently: for scores that do
    not depend on the token it is 1, and the second value NaN.
    """
    unit = [z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30)
            for z in (before, after)]  # fmt: skip
    cosine = float((unit[0] * unit[1]).sum(1).mean())
    return cosine, _corrected(cosine, float(unit[0].mean(0) @ unit[1].mean(0)))


def _corrected(value: float, chance: float) -> float:
    return (value - chance) / (1 - chance) if chance < 1 - 1e-9 else np.nan


def group_overlap(before: np.ndarray, after: np.ndarray, place: Map) -> tuple[float, np.ndarray]:
    """Return how far the groups of lost choices survive, and that under permuted maps.

    An expert that is chosen before, (T, k), and not after counts the share of its groups in common
    (``Map.shared_groups``) with those that came instead, mean over these. The first value is the
    mean over lost choices, NaN where none is; the second, (permutations,), the same with the
    experts' places drawn at random.
    """
    tokens = len(before)
    had, has = (np.zeros((tokens, place.num_experts), dtype=bool) for _ in range(2))
    np.put_along_axis(had, before, True, axis=1)
    np.put_along_axis(has, after, True, axis=1)
    lost, came = had & ~has, has & ~had
    changes = np.maximum(lost.sum(1, keepdims=True), 1)
    moves = (lost / changes).T @ came.astype(np.float64)
    from_, to = np.nonzero(moves)
    weights, count = moves[from_, to], int(lost.sum())

    def overlap(places: np.ndarray) -> float:
        shared = float(weights @ place.shared_groups[places[from_], places[to]])
        return shared / count if count else np.nan

    return (overlap(np.arange(place.num_experts)), permuted_values(overlap, place.num_experts))
