"""The settings of a model but for its MoE layers: a part of config/schema.py."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from moge_bench.config.frozen import Frozen
from moge_bench.config.identity import added


class VisionModelConfig(Frozen):
    """A ViT with a class token."""

    learns: ClassVar[str] = "images"  # the data.kind
    backbone: Literal["vit"] = "vit"
    image_size: int = Field(28, ge=1)
    patch_size: int = Field(7, ge=1)
    num_channels: int = Field(1, ge=1)
    num_classes: int = Field(10, ge=2)
    hidden_size: int = Field(64, ge=1)
    depth: int = Field(4, ge=1)
    num_heads: int = Field(4, ge=1)
    ffn_size: int = Field(128, ge=1, description="hidden width of a dense FFN")
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    dropout: float = Field(0.0, ge=0, lt=1)
    stem: Literal["patch", "conv"] = added(
        "patch", before="patch", description="conv: strided convolutions in place of the patches"
    )

    @model_validator(mode="after")
    def _check(self) -> VisionModelConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} must divide {self.image_size=}")
        if self.stem == "conv" and self._side_after_stem != self.image_size // self.patch_size:
            raise ValueError(
                f"stem='conv' halves image_size={self.image_size} {self.num_halvings} times, to "
                f"{self._side_after_stem}, which must be the {self.image_size // self.patch_size} "
                f"patches of patch_size={self.patch_size}"
            )
        _check_heads(self)
        return self

    @property
    def num_halvings(self) -> int:
        """Convolutions of stride 2 in the stem "conv": the least that shrink as patches do."""
        return math.ceil(math.log2(self.patch_size))

    @property
    def _side_after_stem(self) -> int:
        return -(-self.image_size // 2**self.num_halvings)

    @property
    def tokens_per_example(self) -> int:
        """Tokens that one image becomes, the class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1


class LanguageModelConfig(Frozen):
    """A GPT-2 decoder with tied embeddings."""

    learns: ClassVar[str] = "text"
    backbone: Literal["gpt2"] = "gpt2"
    context: int = Field(128, ge=2, description="tokens in one training window")
    hidden_size: int = Field(64, ge=1)
    depth: int = Field(3, ge=1)
    num_heads: int = Field(4, ge=1)
    ffn_size: int = Field(128, ge=1, description="hidden width of a dense FFN")
    activation: Literal["gelu", "relu", "silu"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> LanguageModelConfig:
        _check_heads(self)
        return self

    @property
    def tokens_per_example(self) -> int:
        """Tokens in one training window."""
        return self.context


ModelConfig = VisionModelConfig | LanguageModelConfig


def _check_heads(model: ModelConfig) -> None:
    if model.hidden_size % model.num_heads:
        raise ValueError(f"num_heads={model.num_heads} must divide {model.hidden_size=}")
