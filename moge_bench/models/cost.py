"""What a model costs whatever it runs on: its parameters and the FLOPs of a token.

Counted on the meta device where possible: then no weight is drawn and nothing is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moge_bench.config import RunConfig, TextBackboneConfig, TextDataConfig
from moge_bench.models.build import build_model, count_parameters
from moge_bench.ops import extension

_BYTES = 257  # ids of the tokenizer "bytes": the separator is one more


@dataclass(frozen=True)
class Cost:
    """Parameters, those that one token meets, and FLOPs a token of a forward pass.

    ``exact``: False where the vocabulary is known with the data only; then these are the most.
    """

    parameters: int
    active_parameters: int
    flops_per_token: int
    exact: bool


def cost_of(config: RunConfig) -> Cost:
    """Return the cost of the model of ``config``; no data are read."""
    return cost_of_model(build_for_counting(config), config)


def cost_of_model(model: nn.Module, config: RunConfig) -> Cost:
    """Return the cost of ``model``, which ``build_for_counting`` made of ``config``."""
    exact = not isinstance(config.data, TextDataConfig) or config.data.tokenizer != "words"
    counts = count_parameters(model)
    return Cost(counts["total"], counts["active"], _flops_per_token(model, config), exact)


def build_for_counting(config: RunConfig) -> nn.Module:
    """Return the model of ``config`` to be counted, with the largest vocabulary that it may have.

    On the meta device, or, where the reference runs its experts, on the CPU.
    """
    size = None
    if isinstance(config.data, TextDataConfig):
        size = _BYTES if config.data.tokenizer == "bytes" else config.data.vocabulary_size
    return _model(config, size)


def count_flops_per_token(config: RunConfig, vocabulary_size: int | None = None) -> int:
    """Return the FLOPs of a forward pass over one example, by its number of tokens, rounded.

    What torch's FlopCounterMode counts: 2 l m n for a product of (l, m) with (m, n). Products
    alone: no softmax, norm, activation, stencil. The scores of attention are counted in whole,
    masked ones too. Every choice of an expert counts, one that a capacity drops as well.
    """
    return _flops_per_token(_model(config, vocabulary_size), config)


def _model(config: RunConfig, vocabulary_size: int | None) -> nn.Module:
    """Return the model on the meta device, or, where the reference runs its experts, on the CPU.

    The reference takes the experts one by one and must know how many tokens each has.
    """
    config = config.from_scratch  # nothing that is counted depends on the weights
    moe = config.moe
    values = moe is not None and (moe.backend == "reference" or extension.load()[0] is None)
    if moe is not None and values:
        config = config.model_copy(update={"moe": moe.model_copy(update={"capacity_factor": None})})
    with torch.device("cpu" if values else "meta"):
        model = build_model(config, vocabulary_size).eval()
    # As matrix products: of the fused attention FlopCounterMode knows some kernels, not the CPU's.
    model.set_attn_implementation("eager")  # type: ignore[operator]
    return model


def _flops_per_token(model: nn.Module, config: RunConfig) -> int:
    inputs = example_inputs(model, config, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return round(counter.get_total_flops() / config.model.tokens_per_example)


def example_inputs(model: nn.Module, config: RunConfig, count: int) -> dict[str, torch.Tensor]:
    """Return what ``model`` takes of ``count`` examples, zeros on its device, by argument."""
    m, inputs = config.model, {}
    with next(model.parameters()).device:
        if isinstance(m, TextBackboneConfig):
            inputs["input_ids"] = torch.zeros((count, m.context), dtype=torch.int64)
            # Without one transformers looks at the positions, which may have no values.
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        else:
            shape = (count, m.num_channels, m.image_size, m.image_size)
            inputs["pixel_values"] = torch.zeros(shape)
    return inputs
