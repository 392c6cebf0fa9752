"""Options of the wider routing that are tested on the CPU and on a GPU."""

import torch

from moge_bench import route

DOUBLE = torch.float64
BIAS = torch.linspace(-0.3, 0.3, 16, dtype=DOUBLE)
OPTIONS = {
    "sigmoid": {"score_function": "sigmoid"},
    "sqrtsoftplus": {"score_function": "sqrtsoftplus"},
    "scores as they are": {"score_function": "sigmoid", "renormalize": False},
    "scale": {"scale": 2.5},
    "bias": {"bias": BIAS},
    "ranges of softmax": {"num_groups": 4, "top_groups": 2},
    "DeepSeek-V3": {
        "score_function": "sigmoid", "bias": BIAS, "num_groups": 8, "top_groups": 4, "scale": 2.5,
        "top_k": 8,
    },
    "unit energy": {"unit_energy": True},
    "unit energy of sigmoid": {"unit_energy": True, "score_function": "sigmoid"},
    "mask": {"mask": torch.arange(40) % 3 > 0, "unit_energy": True, "reduction": "official_image"},
    "all": {
        "score_function": "sqrtsoftplus", "bias": BIAS, "num_groups": 4, "top_groups": 2,
        "scale": 0.5, "mask": torch.arange(40) % 3 > 0, "unit_energy": True, "border": "torus",
        "top_k": 4,
    },
}  # fmt: skip


def call(logits, backend, **options):
    return route(logits, options.pop("top_k", 2), backend=backend, **options)


def objective(routing):
    cotangent = torch.linspace(-1, 1, routing.weights.numel()).to(routing.weights.dtype)
    weights = (routing.weights.flatten() * cotangent).sum()
    return weights + 40 * routing.group_loss + (routing.importance**2).mean()
