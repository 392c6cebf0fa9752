"""Balance: how evenly the experts are used, on the whole validation split.

From a record's loads; "dead" is an expert that no token chose.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import entropy

from moge_bench.analysis.numbers import Number, number, of_block
from moge_bench.runs.record import Record

SPLIT = "validation"


def measure(record: Record) -> list[Number]:
    """Return the balance of every MoE layer of ``record``."""
    found = []
    for layer in record.routing:
        if layer["split"] == SPLIT:
            found += of_block(layer["block"], balance(np.asarray(layer["load"], dtype=np.float64)))
    return found


def balance(load: np.ndarray) -> list[Number]:
    """Return what is known of a layer's ``load``, (N,) float64: choices of each expert.

    balance_entropy: entropy of the shares over log N, 1 for equal loads. balance_max_over_mean, at
    least 1. balance_min_over_max, at most 1. balance_gini: Gini's coefficient, half the mean
    absolute difference of two loads over their mean (Gini 1912): 0 for equal loads, (N - 1) / N for
    a single expert. balance_dead_share. Nothing where nothing was chosen.
    """
    count = len(load)
    if not load.any():
        return []
    evenness = float(entropy(load, base=count)) if count > 1 else 1.0
    ranks = np.arange(1, count + 1)
    gini = 2 * float(ranks @ np.sort(load)) / (count * load.sum()) - (count + 1) / count
    return [
        *number("balance_entropy", evenness),
        *number("balance_max_over_mean", load.max() / load.mean()),
        *number("balance_min_over_max", load.min() / load.max()),
        *number("balance_gini", gini),
        *number("balance_dead_share", float(np.mean(load == 0))),
    ]
