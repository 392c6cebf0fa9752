"""SMoE language models of MomentumSMoE and their MoGE forms (docs/method.md "Systems").

They are trained on WikiText-103. What they reach is not known here: no such run has been made, and
no table of the papers could be read (docs/method.md "Published numbers"). Cost, by the authors'
settings: 60,000 (S) or 80,000 (M) optimiser steps; for GPUs.

Parameters in all and active, of one token, with the largest vocabulary, of 300,000 words: S
40,224,000 and 38,836,992, dense 38,731,776; M 132,662,464 and 111,787,456, dense 110,262,592.
"""

from __future__ import annotations

from typing import Any

from moge_bench.config import (
    GroupConfig,
    LanguageModelConfig,
    MoEConfig,
    ResidualConfig,
    RunConfig,
    SigmaConfig,
    TextDataConfig,
    TrainingConfig,
)
from moge_bench.presets.preset import Preset, counted

# The two sets of official language settings (docs/method.md), at the official scale. Their strength
# grows with the tokens on a device; the official runs had 12 windows of 256, so that
# weight * 3072 on the token mean is the same objective (tests/presets/test_presets.py).
OFFICIAL_LANGUAGE = {
    "released": GroupConfig(weight=1e-5, reduction="official_language"),
    "submitted": GroupConfig(
        weight=1e-4, reduction="official_language", sigma=SigmaConfig(start=10, end=1.5, gamma=0.3)
    ),
}
OFFICIAL_LANGUAGE_TOKENS = 12 * 256


def on_token_mean(official: GroupConfig, num_tokens: int) -> GroupConfig:
    """Return the settings on the mean over tokens that equal ``official`` at ``num_tokens``.

    official_language: sum / P = T * mean; official_image: sum / (h^2 P) = (T / h^2) * mean.
    """
    per_token = {
        "token_mean": 1.0 / num_tokens,
        "official_language": 1.0,
        "official_image": 1.0 / official.size**2,
    }[official.reduction]
    return official.model_copy(
        update={"weight": official.weight * per_token * num_tokens, "reduction": "token_mean"}
    )


def _smoe(
    name: str, residual: ResidualConfig, *, depth: int, hidden_size: int, context: int,
    dropout: float, steps: int, batch_size: int, warmup_steps: int,
) -> RunConfig:  # fmt: skip
    """Return an SMoE baseline of MomentumSMoE (arXiv 2410.14574), as MoGE, on WikiText-103.

    Where this differs from the authors' model: the backbone is GPT-2, so positions are absolute
    and learned, norms come before the sublayers (theirs after), the attention of a window does
    not reach into a cache of earlier ones (theirs spans 256 tokens in S, 1024 in M), and the
    dropout inside an expert is absent; Adam is AdamW without decay, gradients are clipped to norm
    1. The group loss is the released one on the token mean, so that its strength does not depend
    on the batch or the devices.
    """
    return RunConfig(
        preset=name,
        method="moge",
        model=LanguageModelConfig(
            context=context, hidden_size=hidden_size, depth=depth, num_heads=8,
            ffn_size=hidden_size, activation="relu", dropout=dropout,
        ),
        moe=MoEConfig(
            blocks=tuple(range(depth)), num_experts=16, top_k=2, renormalize=True, noise=False,
            balance="switch", residual=residual,
            group=on_token_mean(OFFICIAL_LANGUAGE["released"], OFFICIAL_LANGUAGE_TOKENS),
        ),
        data=TextDataConfig(name="wikitext-103", tokenizer="words", vocabulary_size=300_000),
        training=TrainingConfig(
            steps=steps, batch_size=batch_size, learning_rate=1e-3, schedule="constant",
            warmup_steps=warmup_steps, weight_decay=0.0,
        ),
    )  # fmt: skip


def _at_official_scale(system: RunConfig, scale: str) -> RunConfig:
    """Return ``system`` with a set of official settings at the authors' scale: a sum over tokens.

    A step is cut into micro-batches of ``OFFICIAL_LANGUAGE_TOKENS``, one for each device of
    theirs, so that one device computes the objective that they trained. With as many devices as
    theirs set ``training.gradient_accumulation`` to 1.
    """
    assert system.moe is not None
    training, tokens = system.training, system.training.batch_size * system.model.tokens_per_example
    return system.model_copy(
        update={
            "preset": f"{system.preset.replace('smoe', 'smoge')}-{scale}",
            "moe": system.moe.model_copy(update={"group": OFFICIAL_LANGUAGE[scale]}),
            "training": training.model_copy(
                update={"gradient_accumulation": tokens // OFFICIAL_LANGUAGE_TOKENS}
            ),
        }
    )


_PLAIN = ResidualConfig()
_MOMENTUM_S = ResidualConfig(kind="momentum", mu=0.7, gamma1=0.8, gamma2=1.0)
_MOMENTUM_M = ResidualConfig(kind="momentum", mu=0.7, gamma1=1.0, gamma2=1.0)
_ADAM_M = ResidualConfig(kind="adam", mu=0.7, gamma1=1.0, gamma2=1.0, beta1=0.9, beta2=0.999)
_S: dict[str, Any] = {
    "depth": 3, "hidden_size": 128, "context": 256, "dropout": 0.7,
    "steps": 60_000, "batch_size": 96, "warmup_steps": 3000,
}  # fmt: skip
_M: dict[str, Any] = {
    "depth": 6, "hidden_size": 352, "context": 512, "dropout": 0.1,
    "steps": 80_000, "batch_size": 48, "warmup_steps": 4000,
}  # fmt: skip

_SMOE = {
    "smoe-s": _smoe("smoe-s", _PLAIN, **_S),
    "smoe-m": _smoe("smoe-m", _PLAIN, **_M),
    "momentum-smoe-s": _smoe("momentum-smoe-s", _MOMENTUM_S, **_S),
    "momentum-smoe-m": _smoe("momentum-smoe-m", _MOMENTUM_M, **_M),
    "adam-smoe-m": _smoe("adam-smoe-m", _ADAM_M, **_M),
}
_OFFICIAL = [_at_official_scale(s, scale) for s in _SMOE.values() for scale in OFFICIAL_LANGUAGE]

_ABOUT = {
    "s": "3 layers, width 128, 8 heads, window 256, every FFN 16 experts of which 2 are active",
    "m": "6 layers, width 352, 8 heads, window 512, every FFN 16 experts of which 2 are active",
}
_COST = {
    "s": counted("3.4e17", "0.32", "60,000 steps of 24,576 tokens, 300,000 words"),
    "m": counted("1.3e18", "1.3", "80,000 steps of 24,576 tokens, 300,000 words"),
}
_REACHES = "not known here: no run has been made and no published table could be read"


def _preset(name: str, system: RunConfig, method: str) -> Preset:
    size = "s" if system.model.depth == 3 else "m"
    about = _ABOUT[size]
    if method == "dense":
        about = about.split(", every FFN")[0] + ", every FFN dense"
    return Preset(name, system, method, about, _REACHES, _COST[size])


PRESETS = [
    *[_preset(name, system, "moe") for name, system in _SMOE.items()],
    *[_preset(name.replace("smoe", "smoge"), system, "moge") for name, system in _SMOE.items()],
    *[_preset(system.preset, system, "moge") for system in _OFFICIAL],
    _preset("dense-s", _SMOE["smoe-s"], "dense"),
    _preset("dense-m", _SMOE["smoe-m"], "dense"),
]
