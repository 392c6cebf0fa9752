"""Training dynamics: when the routing settles, and how sure the router is.

From what the routers chose for the same tokens after 10, 25, 50, 75 and 100 % of the steps. Legend:
T tokens, k choices of a token.
"""

from __future__ import annotations

import itertools

import numpy as np

from moge_bench.analysis.numbers import Number, nan_mean, number, of_block
from moge_bench.analysis.probe import Layer
from moge_bench.training.probes import PERCENTS, router_margin


def measure(layer: Layer) -> list[Number]:
    """Return the dynamics of one layer.

    dynamics_changed at "after_P": share of tokens whose set of k experts is another than at the
    point before (router saturation of OLMoE, arXiv 2409.02060, is 1 less this); without "at" the
    last one, from 75 % of the steps to the end. dynamics_margin at "after_P": mean of
    ``router_margin``, nats; without "at" at the end.
    """
    points = [p for p in PERCENTS if f"after_{p}.experts" in layer.tensors]
    choices = [layer.array(f"after_{p}.experts") for p in points] + [layer.experts]
    found: list[Number] = []
    changes = [changed_share(a, b) for a, b in itertools.pairwise(choices)]
    for percent, share in zip([*points[1:], 100], changes, strict=False):
        found += number("dynamics_changed", share, at=f"after_{percent}")
    if points and points[-1] == PERCENTS[-1]:
        found += number("dynamics_changed", changes[-1])
    for percent in points:
        if f"after_{percent}.margin" in layer.tensors:
            margin = nan_mean(layer.array(f"after_{percent}.margin"))
            found += number("dynamics_margin", margin, "nats", at=f"after_{percent}")
    logits, experts = layer.tensors["logits"], layer.tensors["experts"]
    if experts.shape[1] < logits.shape[1]:
        margin = float(router_margin(logits.double(), experts).mean())
        found += number("dynamics_margin", margin, "nats")
    return of_block(layer.block, found)


def changed_share(before: np.ndarray, after: np.ndarray) -> float:
    """Return the share of tokens whose set of experts, (T, k), is not the same."""
    return float((np.sort(before, axis=1) != np.sort(after, axis=1)).any(1).mean())
