"""Topography: are neighbours on the map alike?

Against random permutations of the experts' places, under which no map has an order. Legend: T
tokens, N experts, k choices of a token.
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
from moge_bench.analysis.specialisation import frequent_tokens


def measure(layer: Layer, probe: Probe, load: np.ndarray) -> list[Number]:
    """Return the topography of one layer; ``load``, (N,): choices on the validation split.

    topography_logit_correlation at "distance_d": mean Pearson correlation over tokens of the logits
    of two experts at that distance, less each token's mean over the experts, which a softmax does
    not see; topography_logit_excess: that of neighbours less that at distance 2 and more.
    topography_score_correlation and topography_score_excess: of the scores, less the mean over all
    pairs; unlike that of logits it falls where the same choices are made with more certainty, and
    where experts are dead. topography_coselection and topography_coselection_excess: likewise, of
    being chosen by the same token (phi coefficient), for k > 1. Moran's I of the load, of the class
    preference and of the router's rows: topography_load_moran, topography_preference_moran,
    topography_router_moran; about -1 / (N - 1) without an order. With _p behind a name: the share
    of permutations that reach it.
    """
    place = layer.map
    logits = layer.array("logits")
    centred = correlations(logits - logits.mean(1, keepdims=True))
    found = _by_distance("logit", "correlation", centred, place)
    found += _by_distance("score", "correlation", correlations(layer.scores), place)
    experts = layer.experts
    if 1 < experts.shape[1] < place.num_experts:
        chosen = np.zeros(layer.scores.shape)
        np.put_along_axis(chosen, experts, 1.0, axis=1)
        found += _by_distance("coselection", "", correlations(chosen), place)
    found += _moran("load", load[:, None], place)
    preference = class_preference(layer.scores, token_categories(layer, probe))
    found += _moran("preference", preference, place)
    if "gate" in layer.tensors:
        found += _moran("router", layer.array("gate"), place)
    return of_block(layer.block, found)


def token_categories(layer: Layer, probe: Probe) -> np.ndarray:
    """Return the class of every token's image, or the category of a text's token, (T,) int64."""
    if probe.header.kind == "images":
        return probe.labels_of(layer)
    return frequent_tokens(probe.tensors["tokens"].numpy())


def class_preference(scores: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Return the shares of an expert's scores, (T, N), that each category gave: (N, categories).

    Scores and not choices: an expert that no token chose has its preference too.
    """
    sums = np.stack([scores[categories == c].sum(0) for c in np.unique(categories)], axis=1)
    return sums / np.maximum(sums.sum(1, keepdims=True), np.finfo(np.float64).tiny)


def correlations(values: np.ndarray) -> np.ndarray:
    """Return the Pearson correlations of the columns of (T, N): (N, N); NaN for a constant one."""
    centred = values - values.mean(0)
    norms = np.sqrt(np.square(centred).sum(0))
    # A constant column keeps the rounding of its mean.
    norms[norms <= 1e-12 * np.sqrt(np.square(values).sum(0))] = np.nan
    unit = centred / norms
    return unit.T @ unit


def morans_i(values: np.ndarray, place: Map, permutation: np.ndarray | None = None) -> float:
    """Return Moran's I of ``values``, (N, m), one vector an expert, over neighbours on the map.

    I = (N / W) sum_{ij} w_ij (x_i - mean) . (x_j - mean) / sum_i |x_i - mean|^2 with w_ij = 1 for
    experts at distance 1 and W their sum (Moran, "Notes on continuous stochastic phenomena", 1950;
    for vectors with products summed over their components). NaN where all values are equal.
    """
    products, scale = _products(values)
    return _neighbour_mean(products, place, permutation) / scale


def _products(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centred vectors' products, (N, N), and their mean square; NaN if all are equal."""
    centred = values - values.mean(0)
    scale = float(np.square(centred).sum() / len(values))
    known = scale > 1e-24 * float(np.square(values).sum() / len(values))
    return centred @ centred.T, scale if known else np.nan


def _neighbour_mean(values: np.ndarray, place: Map, permutation: np.ndarray | None = None) -> float:
    """Return the mean of ``values``, (N, N), over neighbours, the experts placed anew."""
    first, second = place.neighbours
    if permutation is not None:
        first, second = permutation[first], permutation[second]
    return nan_mean(values[first, second])


def _moran(what: str, values: np.ndarray, place: Map) -> list[Number]:
    products, scale = _products(values)
    value = _neighbour_mean(products, place) / scale
    permuted = permuted_values(
        lambda places: _neighbour_mean(products, place, places) / scale, place.num_experts
    )
    return [
        *number(f"topography_{what}_moran", value),
        *number(f"topography_{what}_moran_p", p_at_least(value, permuted)),
    ]


def _by_distance(what: str, suffix: str, values: np.ndarray, place: Map) -> list[Number]:
    """Return the means of ``values``, (N, N), by distance, and of neighbours above the others."""
    name = f"topography_{what}"
    found = []
    for distance in range(1, int(place.distances.max()) + 1):
        mean = nan_mean(values[place.distances == distance])
        found += number("_".join(filter(None, [name, suffix])), mean, at=f"distance_{distance}")
    # Of all pairs neighbours are 8 of 15 on a 4x4 torus, and 8 of 143 on a 12x12 one.
    others = nan_mean(values[place.distances > (1 if what == "logit" else 0)])
    near = _neighbour_mean(values, place)
    permuted = permuted_values(
        lambda places: _neighbour_mean(values, place, places), place.num_experts
    )
    return [
        *found,
        *number(f"{name}_excess", near - others),
        *number(f"{name}_excess_p", p_at_least(near, permuted)),
    ]
