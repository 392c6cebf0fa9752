"""What is drawn on a map of experts: one value, category or colour a cell.

Legend: N experts in the order of the map, row by row; d hidden size.
"""

from __future__ import annotations

import numpy as np

from moge_bench.analysis.probe import Layer, Probe
from moge_bench.analysis.store import LayerMap
from moge_bench.analysis.topography import class_preference, token_categories

_DIGITS = 3


def draw(layer: Layer, probe: Probe, load: list[int]) -> LayerMap:
    """Return what a figure shows of one layer."""
    categories = token_categories(layer, probe)
    names = [int(name) for name in np.unique(categories)]
    if probe.header.kind == "text":
        ids = probe.tensors["tokens"].numpy()
        found = [np.unique(ids[categories == name]) for name in names]
        names = [int(each[0]) if len(each) == 1 else -1 for each in found]
    preference = class_preference(layer.scores, categories)
    share = class_preference(layer.scores.sum(1, keepdims=True), categories)
    lift = preference / share
    router: dict[str, list] = {}
    if "gate" in layer.tensors:
        gate = layer.array("gate")
        unit = gate / np.maximum(np.linalg.norm(gate, axis=1, keepdims=True), 1e-30)
        near = layer.map.distances == 1
        similarity = ((unit @ unit.T) * near).sum(1) / np.maximum(near.sum(1), 1)
        router = {
            "router_colours": np.round(principal_components(unit), _DIGITS).tolist(),
            "router_similarity": np.round(similarity, _DIGITS).tolist(),
        }
    return LayerMap(
        block=layer.block, rows=layer.map.rows, cols=layer.map.cols, border=layer.map.border,
        load=load, categories=names, preferred=lift.argmax(1).tolist(),
        lift=np.round(lift.max(1), _DIGITS).tolist(), **router,
    )  # fmt: skip


def principal_components(rows: np.ndarray, count: int = 3) -> np.ndarray:
    """Return the first ``count`` principal components of ``rows``, (N, d), scaled to [-1, 1].

    By one factor for all; the largest entry of each is positive, so that the sign is defined.
    """
    left, sizes, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    found = np.zeros((len(rows), count))
    kept = min(count, len(sizes))
    found[:, :kept] = left[:, :kept] * sizes[:kept]
    largest = found[np.abs(found).argmax(0), np.arange(count)]
    return found * np.where(largest < 0, -1.0, 1.0) / max(float(np.abs(found).max()), 1e-30)
