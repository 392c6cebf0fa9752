"""Image classifiers on transformers' backbones."""

from __future__ import annotations

from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from moge_bench.config import VisionModelConfig


def build_vit(config: VisionModelConfig) -> nn.Module:
    """Return transformers' ViT with a class token; ``model(images).logits`` is (B, classes)."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.num_channels,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_size,
            hidden_act=config.activation,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            num_labels=config.num_classes,
        )
    )
