"""Image classifiers on transformers' backbones."""

from __future__ import annotations

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from moge_bench.config import VisionModelConfig


class ConvStem(nn.Sequential):
    """Images (B, C, H, W) to features (B, hidden_size, H', W') in place of a patch projection.

    ``num_halvings`` times a 3 x 3 convolution of stride 2 and padding 1, batch norm and ReLU, then
    a 1 x 1 convolution (Xiao et al., arXiv 2106.14881). Each halves the sides, rounded up. The
    first has half the channels of the rest.
    """

    def __init__(self, num_channels: int, hidden_size: int, num_halvings: int) -> None:
        layers: list[nn.Module] = []
        width = num_channels
        for index in range(num_halvings):
            out = max(hidden_size // 2, 1) if index == 0 and num_halvings > 1 else hidden_size
            convolution = nn.Conv2d(width, out, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        super().__init__(*layers, nn.Conv2d(width, hidden_size, kernel_size=1))
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @property
    def weight(self) -> torch.Tensor:
        """That of the last convolution: the backbone asks a projection for its dtype."""
        weight = self[-1].weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features; channels last, which convolutions on a CPU prefer."""
        return super().forward(images.contiguous(memory_format=torch.channels_last))


def build_vit(config: VisionModelConfig) -> nn.Module:
    """Return transformers' ViT with a class token; ``model(images).logits`` is (B, classes)."""
    model = ViTForImageClassification(
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
    if config.stem == "conv":
        patches = model.vit.embeddings.patch_embeddings
        patches.projection = ConvStem(
            config.num_channels, config.hidden_size, config.num_halvings
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
