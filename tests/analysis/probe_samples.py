"""Probes made by hand: random scores, and what a probe must hold beside them."""

import torch

from moge_bench.analysis.maps import Map
from moge_bench.analysis.probe import Layer, Probe
from moge_bench.training.probes import VERSION, ProbeHeader

LENGTH = 4  # tokens of an example


def make_layer(scores, place=None, top_k=1, **tensors):
    """A layer with these scores, (T, N), whose experts are those of the largest."""
    place = place or Map(4, 4)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    found = {"scores": scores, "logits": scores.clamp_min(1e-9).log(),
             "experts": scores.topk(top_k).indices.to(torch.int16)}  # fmt: skip
    return Layer(2, place, found | tensors)


def random_scores(tokens=400, experts=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator).softmax(1)


def make_probe(num_tokens=400, kind="images", transformations=(), labels=None, **tensors):
    """A probe of examples of four tokens; ``labels`` (T,) as given, or all 0."""
    labels = torch.zeros(num_tokens).long() if labels is None else torch.as_tensor(labels)
    positions = torch.arange(LENGTH, dtype=torch.int32).repeat(num_tokens // LENGTH)
    header = ProbeHeader(
        version=VERSION, run_id="0", method="moe", seed=0, kind=kind, top_k=1, activation="relu",
        map_shapes={"block2": [4, 4]}, border=None, group_size=None,
        transformations={name: {} for name in transformations},
    )  # fmt: skip
    return Probe(None, header, {"labels": labels, "positions": positions, **tensors})


def values(numbers, at=None):
    """Name -> value of the numbers of that point of a curve."""
    return {number.name: number.value for number in numbers if number.at == at}
