"""What the runs of a study would cost, for ``ablate --dry-run --cost``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape

from moge_bench.cli.common import out
from moge_bench.config import ResidualConfig, RunConfig
from moge_bench.models.training_cost import PEAK_FLOPS, UTILISATION, TrainingCost, training_cost

_GIB = 2**30


def print_costs(configs: Iterable[RunConfig]) -> None:
    """Print a line for all runs that cost the same, and the sum."""
    shapes: dict[str, list[RunConfig]] = {}
    for config in configs:
        shapes.setdefault(_shape(config), []).append(config)
    hours = 0.0
    for alike in shapes.values():
        cost = training_cost(alike[0])
        hours += len(alike) * cost.gpu_hours
        out.print(escape(_line(alike, cost)))
    out.print(
        f"all: {hours:,.1f} GPU hours, products alone, at {UTILISATION:.0%} of "
        f"{PEAK_FLOPS / 1e12:,.0f} TFLOP/s (an H100 in bfloat16); evaluation is not in it"
    )


def _shape(config: RunConfig) -> str:
    """Return a text that is equal for runs of equal cost: losses and residuals add no products."""
    free = {"group": None, "aux_weight": 0.0, "residual": ResidualConfig()}
    plain = config.moe.model_copy(update=free) if config.moe else None
    training = config.training
    parts = (
        training.steps,
        training.batch_size,
        training.gradient_accumulation,
        training.processes,
        training.expert_parallel,
        training.ema_decay is None,
        training.gradient_checkpointing,
    )
    return f"{config.model.structure} {plain} {config.data.name} {parts}"


def _line(alike: list[RunConfig], cost: TrainingCost) -> str:
    presets = list(dict.fromkeys(config.preset for config in alike))
    methods = list(dict.fromkeys(config.method for config in alike))
    moe = alike[0].moe
    experts = f", {moe.num_experts} experts" if moe is not None else ""
    most = "" if cost.exact else "at most "
    memory = f"{cost.state_bytes / _GIB:.2f} GiB of weights and optimiser"
    if cost.activation_bytes is not None:
        memory += f" + {cost.activation_bytes / _GIB:.2f} GiB of activations in float32"
    return (
        f"{', '.join(presets)}: {', '.join(methods)}{experts}: {len(alike)} runs, each {most}"
        f"{cost.parameters / 1e6:.1f} M parameters ({cost.active_parameters / 1e6:.1f} M active), "
        f"{cost.flops:.2e} FLOPs, a device {memory}, {cost.gpu_hours:,.2f} GPU hours"
    )
