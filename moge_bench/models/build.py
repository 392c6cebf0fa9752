"""From a config to a model: the dense backbone first, then the MoE layers in their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_model
from torch import nn

from moge_bench.config import (
    DENSE_RUN,
    GroupConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    SwinModelConfig,
    TextBackboneConfig,
)
from moge_bench.models.gpt2 import build_gpt2
from moge_bench.models.pretrained import load_dense
from moge_bench.models.swin import build_swin, drop_ffn_paths
from moge_bench.models.vit import build_vit
from moge_bench.moe.insert import insert_moe
from moge_bench.moe.layer import MoELayer, moe_layers
from moge_bench.moe.residual import AdamResidual, MomentumResidual, Residual
from moge_bench.moe.settings import MoESettings
from moge_bench.moe.slots import Slot, choose_slots
from moge_bench.moe.upcycle import draw_as_expert, upcycle

# model.backbone -> what builds it from its settings, of text and its vocabulary size too.
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "vit": build_vit,
    "swin": build_swin,
    "swinv2": build_swin,
    "gpt2": build_gpt2,
}


def build_model(
    config: RunConfig, vocabulary_size: int | None = None, dense_run: Path | None = None
) -> nn.Module:
    """Return the model of ``config``, initialised from its seed alone.

    The backbone is drawn first and in full, then each MoE layer, and each dense FFN of
    ``model.expert_init_blocks``, from a seed of its own, so that dense, MoE and MoGE runs of one
    seed start from the same weights wherever they share them.
    With ``model.upcycled_from`` the backbone then takes the weights found there, and every expert
    those of the FFN in its place; ``dense_run`` is the file of weights where that is a dense run's.
    A language model needs ``vocabulary_size``, which the tokenizer knows.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = _build_backbone(config.model, vocabulary_size)
        if config.model.expert_init_blocks:
            for slot in choose_slots(model, config.model.expert_init_blocks):
                _seed_block(config.seed, slot.index)
                draw_as_expert(slot)
        source = config.model.upcycled_from
        if source == DENSE_RUN:
            if dense_run is None:
                raise ValueError(f"model.upcycled_from={source!r} needs the weights of that run")
            load_model(model, dense_run)
        elif source is not None and not next(model.parameters()).is_meta:
            load_dense(model, source)
        if config.moe is not None:
            moe = config.moe

            def make_layer(slot: Slot) -> MoELayer:
                _seed_block(config.seed, slot.index)
                return build_moe_layer(slot, moe)

            put_in = insert_moe if source is None else upcycle
            put_in(model, moe.blocks, make_layer, residual=build_residual(moe), dropout=moe.dropout)
        if isinstance(config.model, SwinModelConfig):
            drop_ffn_paths(model, config.model)
    return model


def _seed_block(seed: int, block: int) -> None:
    """Seed what is drawn for one block beside the backbone, whatever is drawn for the others."""
    torch.manual_seed(1_000_003 * (seed + 1) + block)


def _build_backbone(config: ModelConfig, vocabulary_size: int | None) -> nn.Module:
    build = BUILDERS[config.backbone]
    if not isinstance(config, TextBackboneConfig):
        return build(config)
    if vocabulary_size is None:
        raise ValueError("vocabulary_size must be given for a language model, got None")
    return build(config, vocabulary_size)


def build_residual(moe: MoEConfig) -> Residual:
    """Return the residual rule of ``moe.residual`` for its MoE layers."""
    r = moe.residual
    layers = len(moe.blocks)
    if r.kind == "momentum":
        return MomentumResidual(layers, mu=r.mu, gamma1=r.gamma1, gamma2=r.gamma2)
    if r.kind == "adam":
        return AdamResidual(
            layers, mu=r.mu, gamma1=r.gamma1, gamma2=r.gamma2, beta1=r.beta1, beta2=r.beta2
        )
    return Residual()


class DenseFFN(Protocol):
    """The FFN that an MoE layer replaces: that of a model's config, or a ``Slot``."""

    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def ffn_size(self) -> int: ...  # noqa: D102
    @property
    def activation(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True)
class StageFFN:
    """The dense FFN of a block of a Swin: as wide as its stage says."""

    hidden_size: int
    ffn_size: int
    activation: str


def ffns_of(config: RunConfig) -> list[DenseFFN]:
    """Return the dense FFNs that the MoE layers of ``config`` replace, each size once."""
    model = config.model
    if not isinstance(model, SwinModelConfig):
        return [model]
    found = []
    for block in config.moe.blocks if config.moe else ():
        stage = next(s for s in range(len(model.depths)) if block < sum(model.depths[: s + 1]))
        width = model.embed_dim * 2**stage
        found.append(StageFFN(width, int(model.ffn_ratio * width), model.activation))
    return list(dict.fromkeys(found))


def build_moe_layer(ffn: DenseFFN, moe: MoEConfig) -> MoELayer:
    """Return one MoE layer with the settings of ``moe`` for the place of ``ffn``.

    ValueError if ``ffn`` has an activation that experts have not.
    """
    if ffn.activation is None:
        raise ValueError(f"ffn must have an activation that experts have, got {ffn}")
    expert_size = moe.expert_size or ffn.ffn_size
    return MoELayer.from_settings(ffn.hidden_size, expert_size, moe_settings(moe, ffn.activation))


def moe_settings(moe: MoEConfig, activation: str) -> MoESettings:
    """Return the layer's settings; no group norm where ``moe`` has no group.

    A setting that both sides call by one name is handed on by that name. NaN is let through: the
    training loop finds it in the loss (training/loop.py), and a check in the layer would wait for
    the device in every forward.
    """
    given: dict[str, Any] = {"group_size": None}
    if moe.group is not None:
        given = {
            **_common(moe.group),
            "group_size": moe.group.size,
            "group_weight": moe.group.weight,
            "sigma": moe.group.sigma.start,
        }
    return MoESettings(**_common(moe), **given, activation=activation, nonfinite="propagate")


def _common(config: MoEConfig | GroupConfig) -> dict[str, Any]:
    names = {field.name for field in fields(MoESettings)}
    return {name: getattr(config, name) for name in type(config).model_fields if name in names}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return {"total", "active"}: all parameters, and those that one token meets."""
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for layer in moe_layers(model):
        experts, chosen = layer.router.num_experts, layer.router.top_k
        per_expert = sum(p.numel() for p in layer.experts.parameters()) // experts
        idle += per_expert * (experts - chosen)
    return {"total": total, "active": total - idle}
