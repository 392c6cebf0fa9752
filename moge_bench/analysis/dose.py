"""Dose: did the group loss do anything? Without an answer a null result means nothing.

The loss of every arm's scores, that of arms which never trained it included, measured alike; and
the doses that training measured. Legend: T tokens, N experts, P groups.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from moge_bench.analysis.maps import Map
from moge_bench.analysis.numbers import Number, number, of_block
from moge_bench.analysis.probe import Layer
from moge_bench.ops.topography import EPS
from moge_bench.runs.record import Record

_CURVE = re.compile(r"dose_(?P<term>[a-z]+)_block(?P<block>\d+)")


def measure(layer: Layer) -> list[Number]:
    """Return the group losses of one layer's scores on the probe's tokens.

    By one yardstick for every arm: h = 3 and sigma = 1 on a torus, mean over tokens and groups.
    dose_group_loss: L_group of the scores. dose_unit_energy: the same of z / |z|: larger where the
    scores are more even, at whatever places, and smaller where they lie together on the map.
    """
    scores, place = layer.scores, Map(layer.map.rows, layer.map.cols, "torus")
    energy = np.sqrt(np.square(scores).sum(1, keepdims=True))
    unit = scores / np.maximum(energy, np.finfo(np.float64).tiny)
    found = [
        *number("dose_group_loss", group_loss(scores, place)),
        *number("dose_unit_energy", group_loss(unit, place)),
    ]
    return of_block(layer.block, found)


def group_loss(scores: np.ndarray, place: Map) -> float:
    """Return mean over t, p of sqrt(sum_e G[e, p] z[t, e]^2 + eps), of ``scores`` (T, N)."""
    return float(np.sqrt(np.square(scores) @ place.filter + EPS).mean())


def measure_training(record: Record) -> list[Number]:
    """Return what the curves of the training say of every MoE layer; nothing where it has none.

    For each loss beside the task's, "group", "regularizer" and "balance": |w grad L| over |grad of
    the task loss| at the gate (training/dose.py), dose_group_ratio: median over the points of the
    curve, and dose_group_peak: the largest, often that of the untrained network.
    """
    curves: dict[tuple[str, int], list[float]] = defaultdict(list)
    for point in record.curves:
        match = _CURVE.fullmatch(point.name)
        if match and point.split == "training":
            curves[match["term"], int(match["block"])].append(point.value)
    found = []
    for (term, block), values in sorted(curves.items()):
        ratio, peak = float(np.median(values)), max(values)
        numbers = [*number(f"dose_{term}_ratio", ratio), *number(f"dose_{term}_peak", peak)]
        found += of_block(block, numbers)
    return found
