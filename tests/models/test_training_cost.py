"""What training costs, against arithmetic by hand."""

import pytest

from moge_bench.models.cost import cost_of
from moge_bench.models.training_cost import PEAK_FLOPS, UTILISATION, training_cost
from moge_bench.presets import resolve

STEPS, BATCH, TOKENS = 2100, 64, 17  # of tiny-vit


def test_flops_and_hours():
    config = resolve("tiny-vit", "moge")
    forward = cost_of(config).flops_per_token * STEPS * BATCH * TOKENS
    cost = training_cost(config)
    assert cost.flops == 3 * forward  # backward: products for the inputs, and for the weights
    assert cost.gpu_hours == pytest.approx(cost.flops / (989e12 * 0.3) / 3600)
    assert (PEAK_FLOPS, UTILISATION) == (989e12, 0.3)
    again = resolve("tiny-vit", "moge", {"training.gradient_checkpointing": True})
    assert training_cost(again).flops == 4 * forward  # the blocks' forward twice


def test_memory_of_a_device():
    cost = training_cost(resolve("tiny-lm", "moge"))
    assert cost.state_bytes == 4 * 4 * cost.parameters  # weight, gradient, two moments
    averaged = training_cost(resolve("tiny-lm", "moge", {"training.ema_decay": 0.9}))
    assert averaged.state_bytes == 4 * 5 * cost.parameters
    divided = {"training.processes": 4, "training.expert_parallel": True}
    config = resolve("tiny-lm", "moge", divided)
    d, f = config.model.hidden_size, config.model.ffn_size
    experts = 3 * 64 * (2 * d * f + d + f)  # layers, experts, and what one is
    held = cost.parameters - experts * 3 // 4
    assert training_cost(config).state_bytes == 4 * 4 * held
    # 16 windows of 128 tokens: of the head alone the logits' log-softmax, 2,048 floats a token.
    head = 16 * 128 * 2048 * 4
    assert head < cost.activation_bytes < 10 * head
    quarter = {"training.gradient_accumulation": 2, "training.processes": 2}
    part = training_cost(resolve("tiny-lm", "moge", quarter)).activation_bytes
    assert part == pytest.approx(cost.activation_bytes / 4, rel=0.01)
    assert training_cost(resolve("tiny-lm", "dense")).activation_bytes < cost.activation_bytes


def test_what_the_reference_runs_has_no_count_of_activations():
    cost = training_cost(resolve("tiny-vit", "moge", {"moe.backend": "reference"}))
    assert cost.activation_bytes is None and cost.state_bytes > 0
