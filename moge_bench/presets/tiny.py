"""Systems small enough for a laptop: seconds to minutes on one or two cores.

Parameters in all and active, of one token: tiny-vit 2,292,650 and 204,074; tiny-lm 3,384,960 and
301,824.
"""

from __future__ import annotations

from typing import Any

from moge_bench.config import (
    GroupConfig,
    ImageDataConfig,
    LanguageModelConfig,
    MoEConfig,
    RunConfig,
    TextDataConfig,
    TrainingConfig,
    VisionModelConfig,
)
from moge_bench.presets.preset import Preset

# The last two of four FFNs are MoE, on an 8x8 map: on 4x4 a group of 3x3 is over half of it. A
# torus, so that no expert is favoured for its place (docs/method.md "What the loss rewards"). 2,100
# steps are 15 epochs. Rate and lambda: results/studies/tune_learning_rate and tune_group.
_TINY_VIT = RunConfig(
    preset="tiny-vit",
    method="moge",
    model=VisionModelConfig(stem="conv"),
    moe=MoEConfig(num_experts=64, group=GroupConfig(weight=1000.0, border="torus")),
    data=ImageDataConfig(flip=True, crop_padding=2),
    training=TrainingConfig(
        steps=2100, batch_size=64, learning_rate=2e-3, warmup_steps=210, label_smoothing=0.1
    ),
)
# By docs/studies.md's rule, from results/studies/tune_group and tune_regularizers.
_TINY_VIT_TUNED: dict[str, dict[str, Any]] = {
    "moge-unit": {"moe.group.weight": 10.0},
    "moge-unit-shuffled": {"moe.group.weight": 10.0},
    "moe-entropy": {"moe.regularizer_weight": 60.0},
    "simbal": {"moe.regularizer_weight": 100.0},
    "orthogonality": {"moe.regularizer_weight": 100.0},
}

# Every FFN is MoE. Without dropout of the attention's weights a step takes 0.72 of the time on a
# CPU: torch fuses attention there in no other case. Rate: results/studies/learning_rate_lm.
_TINY_LM = RunConfig(
    preset="tiny-lm",
    method="moge",
    model=LanguageModelConfig(dropout=0.1, attention_dropout=0.0),
    moe=MoEConfig(
        blocks=(0, 1, 2), num_experts=64, top_k=2, renormalize=True, noise=False,
        balance="switch", group=GroupConfig(weight=10.0, border="torus"),
    ),
    data=TextDataConfig(),
    training=TrainingConfig(
        steps=5000, batch_size=16, learning_rate=6e-3, warmup_steps=200, weight_decay=0.01
    ),
)  # fmt: skip

# Not tuned yet (docs/studies.md has the rule): near uniform scores the group loss is 0.058 of what
# minus the entropy is (docs/method.md "Controls").
_TINY_LM_TUNED: dict[str, dict[str, Any]] = {
    "moge-unit": {"moe.group.weight": 10.0},
    "moge-unit-shuffled": {"moe.group.weight": 10.0},
    "moe-entropy": {"moe.regularizer_weight": 0.58},
}

PRESETS = [
    Preset(
        "tiny-vit", _TINY_VIT, "moge", 
        "ViT, convolutional stem, 4 layers, width 64, 17 tokens an image; 64 experts, 1 active",
        "test top-1 86.3 % as moe, 85.6 % as dense (n = 5, results/studies/vision); "
        "logistic regression on pixels: 83 % (results/anchors.json)",
        "156 to 1,244 s on one of two shared cores, 564 to 624 MiB (results/studies/vision)",
        tuned=_TINY_VIT_TUNED,
    ),
    Preset(
        "tiny-lm", _TINY_LM, "moge", 
        "GPT-2, 3 layers, width 64, window 128; 64 experts, 2 active",
        "not known: no study of these settings has run; a Kneser-Ney 5-gram has a test perplexity "
        "of 28.8 (results/anchors.json)",
        "about 6 minutes on one core, 800 MiB",
        tuned=_TINY_LM_TUNED,
    ),
]  # fmt: skip
