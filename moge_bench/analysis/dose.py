"""Dose: did the group loss do anything? Without an answer a null result means nothing.

The loss of every arm's scores, that of arms which never trained it included, measured alike; and
the curves that training kept (METHOD.md's manipulation check). Legend: T tokens, N experts,
P groups.
"""

from __future__ import annotations

import numpy as np

from moge_bench.analysis.maps import Map
from moge_bench.analysis.numbers import Number, nan_mean, number, of_block
from moge_bench.analysis.probe import Layer
from moge_bench.ops.topography import EPS
from moge_bench.runs.record import Record

GROUP_LOSS, GRADIENT_RATIO = "group_loss", "group_gradient_ratio"  # curves, split "training"


def measure(layer: Layer) -> list[Number]:
    """Return the group losses of one layer's scores on the probe's tokens.

    dose_group_loss: L_group, mean over tokens and groups, h = 3, sigma = 1, the run's border (a
    torus where it has none). dose_unit_energy: the same of z / |z|, which shrinkage alone does not
    move (docs/method.md).
    """
    scores = layer.scores
    energy = np.sqrt(np.square(scores).sum(1, keepdims=True))
    unit = scores / np.maximum(energy, np.finfo(np.float64).tiny)
    found = [
        *number("dose_group_loss", group_loss(scores, layer.map)),
        *number("dose_unit_energy", group_loss(unit, layer.map)),
    ]
    return of_block(layer.block, found)


def group_loss(scores: np.ndarray, place: Map) -> float:
    """Return mean over t, p of sqrt(sum_e G[e, p] z[t, e]^2 + eps), of ``scores`` (T, N)."""
    return float(np.sqrt(np.square(scores) @ place.filter + EPS).mean())


def measure_training(record: Record) -> list[Number]:
    """Return what the curves of the training say, of the whole run; nothing where it has none.

    dose_training_loss: the group loss at the last point. dose_gradient_ratio: |lambda grad L_group|
    over |grad of the task loss| at the gate, mean over the points of the curve; dose_gradient_peak:
    its largest.
    """
    curves = {
        name: np.array([
            point.value for point in sorted(record.curves, key=lambda point: point.step)
            if point.name == name and point.split == "training"
        ])
        for name in (GROUP_LOSS, GRADIENT_RATIO)
    }  # fmt: skip
    found = [*number("dose_gradient_ratio", nan_mean(curves[GRADIENT_RATIO]))]
    if curves[GRADIENT_RATIO].size:
        found += number("dose_gradient_peak", curves[GRADIENT_RATIO].max())
    if curves[GROUP_LOSS].size:
        found += number("dose_training_loss", curves[GROUP_LOSS][-1])
    return found
