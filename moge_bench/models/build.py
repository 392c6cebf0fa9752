"""From a config to a model: the dense backbone first, then the MoE layers in their places."""

from __future__ import annotations

import torch
from torch import nn

from moge_bench.config import ModelConfig, MoEConfig, RunConfig, VisionModelConfig
from moge_bench.models.gpt2 import build_gpt2
from moge_bench.models.vit import build_vit
from moge_bench.moe.insert import insert_moe
from moge_bench.moe.layer import MoELayer
from moge_bench.moe.residual import AdamResidual, MomentumResidual, Residual


def build_model(config: RunConfig, vocabulary_size: int | None = None) -> nn.Module:
    """Return the model of ``config``, initialised from its seed alone.

    The backbone is drawn first and in full, then each MoE layer from a seed of its own, so that
    dense, MoE and MoGE runs of one seed start from the same weights wherever they share them.
    A language model needs ``vocabulary_size``, which the tokenizer knows.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = _build_backbone(config.model, vocabulary_size)
        if config.moe is not None:
            moe = config.moe

            def make_layer(block: int) -> MoELayer:
                torch.manual_seed(1_000_003 * (config.seed + 1) + block)
                return build_moe_layer(config.model, moe)

            insert_moe(
                model, moe.blocks, make_layer, residual=build_residual(moe),
                # GPT-2 drops the output of its FFN inside the FFN, a ViT outside it.
                dropout=config.model.dropout if config.model.backbone == "gpt2" else 0.0,
            )  # fmt: skip
    return model


def _build_backbone(config: ModelConfig, vocabulary_size: int | None) -> nn.Module:
    if isinstance(config, VisionModelConfig):
        return build_vit(config)
    if vocabulary_size is None:
        raise ValueError("vocabulary_size must be given for a language model, got None")
    return build_gpt2(config, vocabulary_size)


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


def build_moe_layer(model: ModelConfig, moe: MoEConfig) -> MoELayer:
    """Return one MoE layer with the settings of ``moe``; no group norm where there is no group."""
    settings: dict = {"group_size": None}
    if moe.group is not None:
        settings = {
            "group_size": moe.group.size,
            "group_weight": moe.group.weight,
            "sigma": moe.group.sigma.start,
            "map_shape": moe.group.map_shape,
            "stride": moe.group.stride,
            "border": moe.group.border,
            "reduction": moe.group.reduction,
        }
    return MoELayer(
        model.hidden_size,
        moe.expert_size or model.ffn_size,
        moe.num_experts,
        moe.top_k,
        renormalize=moe.renormalize,
        noise=moe.noise,
        balance=moe.balance,
        bias_update_rate=moe.bias_update_rate,
        z_loss_weight=moe.z_loss_weight,
        aux_weight=moe.aux_weight,
        capacity_factor=moe.capacity_factor,
        batch_priority=moe.batch_priority,
        activation=model.activation,
        backend=moe.backend,
        **settings,
    )


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return {"total", "active"}: all parameters, and those that one token meets."""
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            experts, chosen = layer.router.num_experts, layer.router.top_k
            per_expert = sum(p.numel() for p in layer.experts.parameters()) // experts
            idle += per_expert * (experts - chosen)
    return {"total": total, "active": total - idle}
