"""Every number a table can show. The only list: name, title, unit, digits, direction, source.

To add one that a record holds already, add an entry here with its ``path``. A number that nothing
computes yet needs its source too: a task's ``evaluate`` (training/) or the speed pass
(perf/cells.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["evaluation", "speed", "record", "analysis"]
Side = Literal["higher", "lower"] | None
Data = Literal["", "images", "text"]


@dataclass(frozen=True)
class Metric:
    """One kind of number.

    Attributes:
        name: as grids, records and CSV files write it.
        title: as headings write it.
        unit: "" for pure numbers.
        digits: decimals in a table for people.
        better: "higher", "lower", or None where neither is.
        source: "evaluation" (of a trained model on a split), "speed" (the timing pass of a study),
            "record" (a field of the record: of the run as a whole) or "analysis" (`moge-bench
            analyze`, from the run's probe).
        kind: the table it belongs to: "quality", "routing", "analysis", "speed",
            "memory" or "size".
        published: what results/published_results.csv calls it, or None.
        path: of a field of the record, dotted, where the source is "record". Of an evaluation
            "routing.NAME": NAME in the record's ``routing`` of the split, mean over the layers.
        compared: how two values stand to each other: "difference" in the metric's unit, or
            "ratio", the exponential of a mean difference of logarithms, told in percent.
        data: the data.kind that it is a number of, "" for any.
        of_training: whether it tells of the training, and is the same on every split.
    """

    name: str
    title: str
    unit: str
    digits: int
    better: Side
    source: Source
    kind: Literal["quality", "routing", "analysis", "speed", "memory", "size"]
    published: str | None = None
    path: str = ""
    compared: Literal["difference", "ratio"] = "difference"
    data: Data = ""
    of_training: bool = False

    @property
    def heading(self) -> str:
        """Title and unit, as a column's head has them."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def title_on(self, split: str) -> str:
        """Split and title; what tells of the training has no split."""
        return f"{'' if self.of_training else split.replace('_', ' ')} {self.title}".strip()

    @property
    def paired(self) -> bool:
        """Whether arms are compared seed by seed: what a run found, not what it cost."""
        return self.kind in ("quality", "routing", "analysis") and self.source != "speed"

    @property
    def contrast_unit(self) -> str:
        """The unit of a paired contrast; that of two percentages is a point."""
        if self.compared == "ratio":
            return "%"
        return "points" if self.unit == "%" else self.unit


def _analysis(
    name: str, title: str, unit: str, digits: int, better: Side = None, data: Data = ""
) -> Metric:
    """Return a number of docs/analyses.md, the mean over the MoE layers."""
    return Metric(name, title, unit, digits, better, "analysis", "analysis", data=data)


_ANALYSES = (
    _analysis("dose_group_loss", "group norm", "", 5),
    _analysis("dose_unit_energy", "group norm of unit energy", "", 4),
    _analysis("balance_gini", "Gini of the load", "", 4),
    _analysis("balance_max_over_mean", "max / mean load", "", 2),
    _analysis("diversity_output_cosine", "cosine of outputs", "", 4),
    _analysis("diversity_output_cka", "CKA of outputs", "", 4),
    _analysis("diversity_weight_cosine", "cosine of weights", "", 4),
    _analysis("diversity_router_cosine", "cosine of router rows", "", 4),
    _analysis("specialisation_class", "class information", "bits", 3, "higher", "images"),
    _analysis("specialisation_token", "token information", "bits", 3, "higher", "text"),
    _analysis("specialisation_position", "position information", "bits", 3, "higher"),
    _analysis("topography_score_excess", "correlation of neighbours' scores", "", 4),
    _analysis("topography_logit_excess", "correlation of neighbours", "", 4),
    _analysis("topography_coselection_excess", "co-selection of neighbours", "", 4),
    _analysis("topography_load_moran", "Moran's I of load", "", 4),
    _analysis("topography_preference_moran", "Moran's I of preference", "", 4),
    _analysis("topography_router_moran", "Moran's I of router rows", "", 4),
    _analysis("invariance_agreement", "agreement when transformed", "", 3, "higher"),
    _analysis("invariance_cosine_corrected", "cosine when transformed", "", 3, "higher"),
    _analysis("invariance_group_excess", "group overlap when transformed", "", 4),
    _analysis("dynamics_changed", "changed choices", "", 3, "lower"),
    _analysis("dynamics_margin", "router margin", "nats", 3),
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1_accuracy", "top-1", "%", 2, "higher", "evaluation", "quality",
               "top-1 accuracy", data="images"),
        Metric("top5_accuracy", "top-5", "%", 2, "higher", "evaluation", "quality",
               "top-5 accuracy", data="images"),
        Metric("cross_entropy", "cross-entropy", "nats", 4, "lower", "evaluation", "quality"),
        Metric("perplexity", "perplexity", "", 2, "lower", "evaluation", "quality", "perplexity",
               compared="ratio", data="text"),
        Metric("bits_per_byte", "bits per byte", "bits", 4, "lower", "evaluation", "quality",
               "bits per byte", data="text"),
        Metric("load_entropy", "load entropy", "", 4, None, "evaluation", "routing",
               path="routing.load_entropy_normalized"),
        Metric("dead_experts", "dead experts", "", 4, None, "evaluation", "routing",
               path="routing.dead_expert_share"),
        Metric("dropped_share", "dropped choices", "", 4, None, "evaluation", "routing",
               path="routing.dropped_share"),
        Metric("dose", "dose", "", 3, None, "evaluation", "routing", of_training=True),
        Metric("score_entropy", "score entropy", "", 4, None, "evaluation", "routing",
               path="routing.score_entropy_normalized"),
        Metric("top_score", "largest score", "", 4, None, "evaluation", "routing",
               path="routing.top_score"),
        Metric("group_norm", "group norm", "", 5, None, "evaluation", "routing",
               path="routing.group_norm"),
        *_ANALYSES,
        Metric("peak_memory_mib", "peak memory", "MiB", 2, "lower", "speed", "memory"),
        Metric("tokens_per_second", "throughput", "tokens/s", 0, "higher", "speed", "speed"),
        Metric("step_ms", "step", "ms", 2, "lower", "speed", "speed"),
        Metric("scoring_tokens_per_second", "scoring throughput", "tokens/s", 0, "higher", "speed",
               "speed"),
        Metric("peak_rss_mib", "peak RSS", "MiB", 0, "lower", "record", "memory",
               path="peak_rss_mib"),
        Metric("parameters", "parameters", "", 0, None, "record", "size", path="parameters.total"),
        Metric("active_parameters", "active parameters", "", 0, None, "record", "size",
               path="parameters.active"),
        Metric("flops_per_token", "forward", "FLOPs/token", 0, "lower", "record", "size",
               path="parameters.flops_per_token"),
    )
}  # fmt: skip

SPLITS = ("validation", "test", "validation_attacked", "test_attacked")


def from_source(source: Source) -> tuple[str, ...]:
    """Return the names of the metrics that ``source`` produces."""
    return tuple(name for name, metric in METRICS.items() if metric.source == source)
