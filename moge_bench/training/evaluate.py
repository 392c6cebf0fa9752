"""Metrics, routing statistics, and the evaluation of image classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moge_bench.data.decoded import DecodedSplit
from moge_bench.data.images import ImageSplit
from moge_bench.moe.insert import collect_aux
from moge_bench.moe.layer import MoEAux
from moge_bench.ops.group_norm import group_norm
from moge_bench.routing.regularizers import normalized_entropies
from moge_bench.training.device import to_device
from moge_bench.training.kept import Kept
from moge_bench.training.ranks import Ranks


@dataclass(frozen=True)
class Metric:
    """One measured number: what, how much, in which unit, on which split, after which step."""

    name: str
    value: float
    unit: str
    split: str
    step: int


class RoutingStatistics:
    """Sums what every MoE layer did over many batches, on the device: ``summary`` reads it."""

    def __init__(self) -> None:
        self._layers: list[dict[str, Any]] = []

    def add(self, auxes: list[MoEAux]) -> None:
        """Add one forward pass: the layers' ``MoEAux`` in call order."""
        if not self._layers:
            self._layers = [
                {"load": 0, "choices": 0, "dropped": 0, "group": Kept(), "scores": Kept(),
                 "tokens": 0}
                for _ in auxes
            ]  # fmt: skip
        for layer, aux in zip(self._layers, auxes, strict=True):
            layer["load"] = layer["load"] + aux.routing.load
            layer["choices"] += aux.routing.experts.numel()
            layer["dropped"] = layer["dropped"] + aux.num_dropped
            if "group" in aux.losses:
                layer["group"].add(aux.losses["group"])
            scores = aux.routing.scores
            layer["scores"].add(_score_sums(scores))
            layer["tokens"] += len(scores)

    def summary(self, ranks: Ranks | None = None) -> list[dict[str, Any]]:
        """Return one dict per layer: what ``_summarize`` names, of what all ``ranks`` added.

        Of the load: the counts, their normalised entropy, largest over mean, the share of experts
        without a token, of choices that were dropped. Of the scores, mean over tokens: normalised
        entropy, the largest one, and L_group by one yardstick for every arm: groups of 3 with
        sigma = 1 on a torus. "group_loss" is the arm's own.
        """
        of_ranks = (ranks or Ranks()).gather([self._read(layer) for layer in self._layers])
        return [self._summarize(layers) for layers in zip(*of_ranks, strict=True)]

    @staticmethod
    def _read(layer: dict[str, Any]) -> dict[str, Any]:
        """Return what was added, off the device."""
        return {
            **layer,
            "load": layer["load"].cpu(),
            "dropped": int(layer["dropped"]),
            "group": layer["group"].stacked().tolist(),
            "scores": layer["scores"].stacked().sum(0).cpu(),
        }

    @staticmethod
    def _summarize(of_ranks: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        layer = {name: sum((of[name] for of in of_ranks[1:]), of_ranks[0][name])
                 for name in of_ranks[0]}  # fmt: skip
        load = layer["load"].to(torch.float64)
        group = layer["group"]
        means = [value / max(layer["tokens"], 1) for value in layer["scores"].tolist()]
        return {
            "load": layer["load"].tolist(),
            "load_entropy_normalized": _normalized_entropy(load),
            "max_over_mean_load": float(load.max() / load.mean().clamp_min(1e-12)),
            "dead_expert_share": float((load == 0).double().mean()),
            "dropped_share": layer["dropped"] / max(layer["choices"], 1),
            "group_loss": sum(group) / len(group) if group else None,
            "score_entropy_normalized": means[0],
            "top_score": means[1],
            "group_norm": means[2],
        }


def _score_sums(scores: torch.Tensor) -> torch.Tensor:
    """Return the sums over tokens that ``RoutingStatistics.summary`` tells, (3,) float64."""
    norm = group_norm(scores, sigma=1.0, border="torus", nonfinite="propagate") * len(scores)
    sums = (normalized_entropies(scores).sum(), scores.amax(-1).sum(), norm)
    return torch.stack([value.double() for value in sums])


def _normalized_entropy(load: torch.Tensor) -> float:
    """Return the entropy of the shares of ``load``, (N,) float64, over its most, log N.

    1 for a single expert, which has no other choice; 0 where nothing was routed.
    """
    from scipy.stats import entropy

    if len(load) == 1:
        return 1.0
    return float(entropy(load.cpu().numpy(), base=len(load))) if load.any() else 0.0


@dataclass
class Evaluation:
    """Metrics of one split, and what each MoE layer did on it, clean and, of text, attacked.

    ``routing`` is by the name of the split, "test" or "test_attacked".
    """

    metrics: list[Metric]
    routing: dict[str, list[dict[str, Any]]]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Put ``model`` into evaluation mode without gradients; yield its device; restore its mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


def evaluate_images(
    model: nn.Module, split: ImageSplit | DecodedSplit, *, name: str, step: int,
    batch_size: int = 500, ranks: Ranks | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate an image classifier on the whole split, each of ``ranks`` on its share.

    Metrics: top1_accuracy and top5_accuracy in percent, cross_entropy in nats per image.
    """
    ranks, statistics = ranks or Ranks(), RoutingStatistics()
    share = split.part(ranks.slice_of(len(split), f"{name} images"))
    losses, hits_at = Kept(), Kept()
    with evaluating(model) as device:
        for images, labels in share.batches(batch_size):
            images, labels = to_device(images, device), to_device(labels, device)
            with collect_aux(model) as auxes:
                logits = model(images).logits.float()
            statistics.add(auxes)
            losses.add(F.cross_entropy(logits, labels, reduction="sum"))
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits_at.add(torch.stack([hits[:, 0].sum(), hits.sum()]))
    total_loss = 0.0
    for loss in losses.stacked().tolist():  # read once: each read waits for a GPU
        total_loss += loss
    num_hits = hits_at.stacked().sum(0).tolist()
    of_ranks = ranks.gather((total_loss, *num_hits))
    total_loss, top1, top5 = (sum(each) for each in zip(*of_ranks, strict=True))
    count = len(split)
    metrics = [
        Metric("top1_accuracy", 100.0 * top1 / count, "%", name, step),
        Metric("top5_accuracy", 100.0 * top5 / count, "%", name, step),
        Metric("cross_entropy", total_loss / count, "nats/image", name, step),
    ]
    return Evaluation(metrics, {name: statistics.summary(ranks)})
