"""The settings of the data: a part of config/schema.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moge_bench.config.frozen import Frozen
from moge_bench.config.identity import added, not_hashed

_DIGEST = "of the content of local data; None for a data set that is known by name"


class ImageDataConfig(Frozen):
    """Which images, how they are changed in training, and whether the test split is read.

    ``name`` is a set that is known by name or the path of a local one (data/image_files.py). What
    ``augment`` draws comes from the run's seed alone, so every method of a seed sees equal batches.
    """

    kind: Literal["images"] = "images"
    name: str = "fashion-mnist-10k"
    digest: str | None = added(None, before=None, description=_DIGEST)
    mean: tuple[float, ...] | None = added(
        None, before=None, description="of a pixel in 0..1, per channel; None: as of the data set"
    )
    std: tuple[float, ...] | None = added(
        None, before=None, description="its standard deviation, per channel"
    )
    validation_share: float = added(
        0.1, before=0.1, gt=0, lt=1, description="of each class, where no split is for it"
    )
    evaluate_test: bool = Field(True, description="False while hyper-parameters are being chosen")
    flip: bool = added(False, before=False, description="mirror half of the training images")
    crop_padding: int = added(
        0, before=0, ge=0, description="pixels by which training images are padded and cut again"
    )
    resized_crop: float | None = added(
        None, before=None, gt=0, le=1, description="least share of the area that is cut and resized"
    )
    rand_augment: float = added(0.0, before=0.0, ge=0, le=10, description="magnitude of 2 ops")
    mixup: float = added(0.0, before=0.0, ge=0, description="alpha of its Beta(alpha, alpha)")
    cutmix: float = added(0.0, before=0.0, ge=0, description="alpha; with mixup each half the time")
    erasing: float = added(0.0, before=0.0, ge=0, le=1, description="probability of an image")
    workers: int | None = not_hashed(
        default=None, ge=0, description="processes that decode; None: one less than the cores"
    )

    @model_validator(mode="after")
    def _check(self) -> ImageDataConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean={self.mean} and std={self.std}: give both or neither")
        mean, std = self.mean or (), self.std or ()
        if len(mean) != len(std) or min(std, default=1) <= 0:
            raise ValueError(f"{mean=} and {std=} must have a value per channel, std > 0")
        return self


class TextDataConfig(Frozen):
    """Which text, how it becomes tokens, and how it is scored."""

    kind: Literal["text"] = "text"
    name: str = "state-of-the-union"
    digest: str | None = added(None, before=None, description=_DIGEST)
    tokenizer: Literal["bpe", "bytes", "words"] = "bpe"
    vocabulary_size: int = Field(2048, ge=257, description="bpe: exactly; words: at most")
    stride: int | None = Field(None, ge=1, description="of the scoring window; None: its length")
    attacked_share: float = Field(0.025, ge=0, le=1, description="words swapped; 0: no attack")
    evaluate_test: bool = Field(True, description="False while hyper-parameters are being chosen")


DataConfig = ImageDataConfig | TextDataConfig
