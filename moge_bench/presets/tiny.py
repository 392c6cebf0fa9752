"""Systems small enough for a laptop: seconds to minutes on one or two cores."""

from __future__ import annotations

from moge_bench.config import (
    GroupConfig,
    LanguageModelConfig,
    MoEConfig,
    RunConfig,
    TextDataConfig,
    TrainingConfig,
)
from moge_bench.presets.preset import Preset

# The last two of four FFNs are MoE. The learning rate is that of ablations/learning_rate.yaml,
# lambda of ablations/group_weight.yaml.
_TINY_VIT = RunConfig(
    preset="tiny-vit",
    method="moge",
    moe=MoEConfig(group=GroupConfig(weight=4.0)),
    training=TrainingConfig(steps=300, batch_size=64, learning_rate=2e-3),
)

# Every FFN is MoE. The learning rate is that of ablations/learning_rate_lm.yaml, lambda of
# ablations/group_weight_lm.yaml.
_TINY_LM = RunConfig(
    preset="tiny-lm",
    method="moge",
    model=LanguageModelConfig(),
    moe=MoEConfig(
        blocks=(0, 1, 2), num_experts=16, top_k=2, renormalize=True, noise=False,
        balance="switch", group=GroupConfig(weight=0.03),
    ),
    data=TextDataConfig(),
    training=TrainingConfig(steps=600, batch_size=16, learning_rate=2e-3, weight_decay=0.01),
)  # fmt: skip

PRESETS = [
    Preset(
        "tiny-vit", _TINY_VIT, "moge", 
        "ViT, 4 layers, width 64, 17 tokens an image; 16 experts, 1 active",
        "test top-1 77.30 % [76.64; 77.96] as moe (95 % interval, n = 3, results/studies/quick)",
        "about 20 s on one core, 460 MiB",
    ),
    Preset(
        "tiny-lm", _TINY_LM, "moge", "GPT-2, 3 layers, width 64, window 128; 16 experts, 2 active",
        "test perplexity 196.0 [192.9; 199.1] as moe after 300 of its 600 steps (95 % interval, "
        "n = 3, results/studies/language)",
        "about 2 minutes on one core, 800 MiB",
    ),
]  # fmt: skip
