"""Swin and SwinV2 image classifiers on transformers' backbones."""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
)

from moge_bench.config import SwinModelConfig
from moge_bench.moe.ffn_layouts import find_places

_FAMILIES = {
    "swin": (SwinConfig, SwinForImageClassification),
    "swinv2": (Swinv2Config, Swinv2ForImageClassification),
}


def build_swin(config: SwinModelConfig) -> nn.Module:
    """Return a Swin or SwinV2; ``model(images).logits`` is (B, classes).

    Drop-path (arXiv 1603.09382) grows linearly over the blocks, from 0 to ``config.drop_path``,
    and acts on both branches of a block. Transformers' Swin drops the attention branch alone:
    ``drop_ffn_paths`` adds the other. A window larger than a stage's image is cut to it.
    """
    make_config, make_model = _FAMILIES[config.backbone]
    return make_model(
        make_config(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.num_channels,
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            window_size=config.window_size,
            mlp_ratio=config.ffn_ratio,
            hidden_act=config.activation,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            drop_path_rate=config.drop_path,
            num_labels=config.num_classes,
        )
    )


def drop_ffn_paths(model: nn.Module, config: SwinModelConfig) -> None:
    """Make the FFN branches of a Swin skip images as its attention branches do.

    SwinV2 does that by itself. To be called once, when the MoE layers are in their places.
    """
    if config.backbone == "swinv2" or not config.drop_path:
        return
    for index, place in enumerate(find_places(model)):
        share = config.drop_path * index / max(config.depth - 1, 1)
        ffn = getattr(place.block, place.parts[-1])
        ffn.register_forward_hook(functools.partial(_drop_output, share))


def _drop_output(
    share: float, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    return drop_path(output, share, module.training)


def drop_path(branch: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    """Return ``branch``, (B, ...), with each image's row 0 with probability ``share``, else scaled.

    The scale, 1 / (1 - share), keeps the mean. Unchanged outside training.
    """
    if not training or share == 0.0:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
    kept = torch.rand(shape, device=branch.device) >= share
    return branch * kept.to(branch.dtype) / (1 - share)
