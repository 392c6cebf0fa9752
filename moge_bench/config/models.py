"""The settings of a model but for its MoE layers: a part of config/schema.py."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from moge_bench.config.frozen import Frozen
from moge_bench.config.identity import added

Activation = Literal["gelu", "relu", "silu"]  # the words of ops.reference_experts.ACTIVATIONS
DENSE_RUN = "dense-run"
UPCYCLED_FROM = (
    "a dense model in transformers' format, a folder or a hub name: the run starts from its "
    "weights, and every expert from a copy of the FFN in its place; 'dense-run': the dense run of "
    "the same settings and seed, from scratch"
)
EXPERT_INIT_BLOCKS = (
    "blocks, 0-based, whose dense FFN starts from the distribution that experts start from, not "
    "from the backbone's; a dense run of a preset has those that are MoE in the others"
)
UPCYCLED_DIGEST = "of the files of a local upcycled_from; None for a hub name"


class BackboneConfig(Frozen):
    """What every backbone has; beside it ``backbone``, ``depth`` and ``tokens_per_example``."""

    learns: ClassVar[str]  # the data.kind
    upcycled_from: str | None = added(None, before=None, description=UPCYCLED_FROM)
    upcycled_digest: str | None = added(None, before=None, description=UPCYCLED_DIGEST)
    expert_init_blocks: tuple[int, ...] = added((), before=[], description=EXPERT_INIT_BLOCKS)

    @property
    def structure(self) -> str:
        """What decides the model's shape, its data and its work, as text; not how it starts."""
        return self.model_dump_json(exclude={"expert_init_blocks"})

    @field_validator("expert_init_blocks")
    @classmethod
    def _in_order(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(blocks)))


class ImageBackboneConfig(BackboneConfig):
    """A backbone that classifies images (num_channels, image_size, image_size)."""

    learns: ClassVar[str] = "images"
    image_size: int = Field(28, ge=1)
    num_channels: int = Field(1, ge=1)
    num_classes: int = Field(10, ge=2)


class TextBackboneConfig(BackboneConfig):
    """A decoder that predicts the next token."""

    learns: ClassVar[str] = "text"
    context: int = Field(128, ge=2, description="tokens in one training window")

    @property
    def tokens_per_example(self) -> int:
        """Tokens in one training window."""
        return self.context


class VisionModelConfig(ImageBackboneConfig):
    """A ViT with a class token."""

    backbone: Literal["vit"] = "vit"
    patch_size: int = Field(7, ge=1)
    hidden_size: int = Field(64, ge=1)
    depth: int = Field(4, ge=1)
    num_heads: int = Field(4, ge=1)
    ffn_size: int = Field(128, ge=1, description="hidden width of a dense FFN")
    activation: Activation = "gelu"
    dropout: float = Field(0.0, ge=0, lt=1)
    stem: Literal["patch", "conv"] = added(
        "patch", before="patch", description="conv: strided convolutions in place of the patches"
    )

    @model_validator(mode="after")
    def _check(self) -> VisionModelConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} must divide image_size={self.image_size}"
            )
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


class SwinModelConfig(ImageBackboneConfig):
    """A Swin (arXiv 2103.14030) or SwinV2 (arXiv 2111.09883), whose stages halve the side.

    Stage s, from 0, has ``depths[s]`` blocks of width embed_dim * 2^s. ``moe.blocks`` counts the
    blocks of all stages.
    """

    backbone: Literal["swin", "swinv2"]
    image_size: int = Field(32, ge=1)
    patch_size: int = Field(4, ge=1)
    embed_dim: int = Field(32, ge=1)
    depths: tuple[int, ...] = Field((2, 2), min_length=1)
    num_heads: tuple[int, ...] = Field((2, 4), min_length=1)
    window_size: int = Field(4, ge=1)
    ffn_ratio: float = Field(4.0, gt=0, description="hidden width of an FFN over that of its block")
    activation: Activation = "gelu"
    dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="share of images that skip a branch: of the last block; linear"
    )
    # From the start: hashed where they are None too.
    upcycled_from: str | None = Field(None, description=UPCYCLED_FROM)
    upcycled_digest: str | None = Field(None, description=UPCYCLED_DIGEST)

    @model_validator(mode="after")
    def _check(self) -> SwinModelConfig:
        if len(self.depths) != len(self.num_heads) or min(self.depths) < 1:
            raise ValueError(
                f"depths={self.depths} and num_heads={self.num_heads} must have one number, at "
                "least 1, per stage"
            )
        for stage, heads in enumerate(self.num_heads):
            width = self.embed_dim * 2**stage
            if heads < 1 or width % heads:
                raise ValueError(f"{heads=} of stage {stage} must divide its width {width}")
        smallest = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size % smallest:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {smallest}: patch_size="
                f"{self.patch_size}, halved {len(self.depths) - 1} times"
            )
        return self

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def tokens_per_example(self) -> int:
        """Tokens that one image becomes: its patches. Each stage after the first has a quarter."""
        return (self.image_size // self.patch_size) ** 2


class LanguageModelConfig(TextBackboneConfig):
    """A GPT-2 decoder with tied embeddings."""

    backbone: Literal["gpt2"] = "gpt2"
    hidden_size: int = Field(64, ge=1)
    depth: int = Field(3, ge=1)
    num_heads: int = Field(4, ge=1)
    ffn_size: int = Field(128, ge=1, description="hidden width of a dense FFN")
    activation: Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float | None = added(
        None, before=None, ge=0, lt=1,
        description="of the attention's weights; None: dropout. 0 is quicker: CPUs fuse it then",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> LanguageModelConfig:
        _check_heads(self)
        return self


ModelConfig = VisionModelConfig | SwinModelConfig | LanguageModelConfig


def _check_heads(model: VisionModelConfig | LanguageModelConfig) -> None:
    if model.hidden_size % model.num_heads:
        raise ValueError(f"num_heads={model.num_heads} must divide hidden_size={model.hidden_size}")
