"""Specialisation: what a token's expert tells of the token, in bits.

Legend: T tokens, k choices of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moge_bench.analysis.numbers import (
    NUM_PERMUTATIONS,
    Number,
    number,
    of_block,
    p_at_least,
)
from moge_bench.analysis.probe import Layer, Probe

NUM_FREQUENT = 15  # tokens of a text that are categories of their own; all others are one more


def measure(layer: Layer, probe: Probe) -> list[Number]:
    """Return what the choices of one layer tell of class (images) or token (text), and of position.

    specialisation_class or specialisation_token, specialisation_position: mutual information
    between expert and label, corrected for bias and adjusted for chance, and with _p behind it the
    share of permutations that reach it. Adjusted: (I - E) H / (H - E), E its mean under permuted
    labels and H the entropy of the labels: labels that the expert tells wholly have H and chance
    has 0 (Vinh et al., "Information theoretic measures for clusterings comparison", 2010). I - E
    alone would take too much from a strong dependence. Classes are permuted between images, since
    the tokens of one image are not independent; positions within an example; tokens of a text
    freely. For k > 1 every choice counts as one observation of its token.
    """
    experts = layer.experts
    positions, length = probe.positions_of(layer), probe.length_of(layer)
    found: list[Number] = []
    if probe.header.kind == "images":
        classes = probe.labels_of(layer)
        found += _excess("class", experts, classes, lambda rng: _shuffle_examples(
            rng, classes, length))  # fmt: skip
    else:
        tokens = frequent_tokens(probe.tensors["tokens"].numpy())
        found += _excess("token", experts, tokens, lambda rng: rng.permutation(tokens))
    found += _excess("position", experts, positions, lambda rng: rng.permuted(
        positions.reshape(-1, length), axis=1).ravel())  # fmt: skip
    return of_block(layer.block, found)


def _shuffle_examples(rng: np.random.Generator, labels: np.ndarray, length: int) -> np.ndarray:
    """Permute the labels, (T,), of examples of ``length`` tokens with one label each."""
    return rng.permutation(labels.reshape(-1, length)).ravel()


def _excess(
    name: str,
    experts: np.ndarray,
    labels: np.ndarray,
    shuffle: Callable[[np.random.Generator], np.ndarray],
) -> list[Number]:
    """Return mutual information adjusted for labels as ``shuffle`` permutes them, and its p."""
    value = mutual_information(experts, labels)
    generator = np.random.default_rng(0)
    permuted = np.array(
        [mutual_information(experts, shuffle(generator)) for _ in range(NUM_PERMUTATIONS)]
    )
    entropy, chance = _entropy(np.bincount(labels), len(labels)) / math.log(2), permuted.mean()
    adjusted = (value - chance) * entropy / (entropy - chance) if entropy > chance else math.nan
    return [
        *number(f"specialisation_{name}", adjusted, "bits"),
        *number(f"specialisation_{name}_p", p_at_least(value, permuted)),
    ]


def mutual_information(experts: np.ndarray, labels: np.ndarray) -> float:
    """Return the mutual information between ``experts``, (T, k), and ``labels``, (T,), in bits.

    With the correction of Miller (1955): each entropy is raised by (occupied cells - 1) / (2 n)
    nats, n = T k. Can fall below 0.
    """
    chosen, told = experts.ravel(), labels.repeat(experts.shape[1])
    shape = int(chosen.max()) + 1, int(told.max()) + 1
    table = np.bincount(chosen * shape[1] + told, minlength=shape[0] * shape[1]).reshape(shape)
    joint, of_expert, of_label = (
        _entropy(counts, len(chosen)) for counts in (table.ravel(), table.sum(1), table.sum(0))
    )
    return (of_expert + of_label - joint) / math.log(2)


def _entropy(counts: np.ndarray, total: int) -> float:
    """Return Miller and Madow's estimate of the entropy of ``counts``, in nats."""
    occupied = counts[counts > 0]
    shares = occupied / total
    return float(-(shares * np.log(shares)).sum() + (len(occupied) - 1) / (2 * total))


def frequent_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return categories (T,): the 15 most frequent ids by rank, and 15 for every other one.

    Of equally frequent ids the lower one comes first. The probe's text is the same for all runs.
    """
    ids, counts = np.unique(tokens, return_counts=True)
    order = ids[np.argsort(-counts, kind="stable")][:NUM_FREQUENT]
    categories = np.full(tokens.shape, len(order))
    for rank, token in enumerate(order):
        categories[tokens == token] = rank
    return categories
