"""What the runs of a study can give: a figure that none of them has is refused beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from moge_bench.config import RunConfig, TextDataConfig
from moge_bench.metrics import METRICS, Metric


def check_obtainable(
    metrics: Sequence[str], splits: Sequence[str], configs: Sequence[RunConfig]
) -> None:
    """Raise ValueError for a metric or split of the table that no run of the study would have."""
    for name in metrics:
        reasons = [_lacks(METRICS[name], config) for config in configs]
        if all(reasons):
            raise ValueError(f"table.metrics: {name} {reasons[0]}")
    read = any(METRICS[name].source == "evaluation" for name in metrics)
    for split in splits if read else ():
        if split.endswith("_attacked") and not any(_attacks(config) for config in configs):
            raise ValueError(
                f"table.splits: {split} is of text with data.attacked_share above 0, and no run of "
                f"this study reads any; write splits: {split.removesuffix('_attacked')}"
            )


def _lacks(metric: Metric, config: RunConfig) -> str:
    """Return "" or why a run of ``config`` has no value of ``metric``."""
    kind = config.data.kind
    if metric.data not in ("", kind):
        others = [
            m.name for m in METRICS.values() if m.data in ("", kind) and m.kind == metric.kind
        ]
        return (
            f"is a number of {metric.data}, and every run of this study reads {kind}: take one of "
            f"{', '.join(others)}"
        )
    if metric.kind in ("routing", "analysis") and config.moe is None:
        return "is a number of MoE layers, and no run of this study has one"
    if metric.name == "bits_per_byte" and getattr(config.data, "tokenizer", "") == "words":
        return "cannot be told with data.tokenizer='words', which loses text: take perplexity"
    return ""


def _attacks(config: RunConfig) -> bool:
    return isinstance(config.data, TextDataConfig) and config.data.attacked_share > 0
