"""The fixed inputs of a probe, and the same inputs transformed, a little and more.

Legend: B examples, L tokens of an example, T = B L tokens, in the order of the validation split.
What is drawn comes from a generator of this module: equal for every run of a data set, and no
random number of the training is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moge_bench.config import RunConfig
from moge_bench.training.task import Task

NUM_TOKENS = 2048  # at least: whole examples are taken
_SEED = 0

# Family -> its doses. Each image is shifted to one side, rotated to one side, made brighter or
# darker: the side is drawn once for a family, so that only the dose differs along a curve.
IMAGE_DOSES: dict[str, tuple[float, ...]] = {
    "shift": (1, 2, 3),
    "rotation": (5, 10, 20),
    "brightness": (0.25, 0.5, 1.0),
}
TEXT_DOSES: dict[str, tuple[float, ...]] = {"words": (1, 2, 5, 10)}
# Brightness: standard deviations of the data set's pixels; words: percent of the tokens.
UNITS = {"shift": "px", "rotation": "degree", "brightness": "standard deviation", "words": "%"}


@dataclass(frozen=True)
class Transformed:
    """The probe's inputs after one transformation.

    Attributes:
        name: family and dose, "shift_2".
        inputs: as the model takes them, of the shape and dtype of the originals.
        replaced: (T,) bool, the tokens that are others now; None where none was replaced.
    """

    name: str
    family: str
    dose: float
    inputs: torch.Tensor
    replaced: torch.Tensor | None = None


@dataclass(frozen=True)
class ProbeInputs:
    """Examples of the validation split, at equal distances over all of it.

    Attributes:
        inputs: images (B, channels, height, width) float32, or token ids (B, L) int64.
        labels: (T,) int64: the class of a token's image, or the id of the token that follows it.
        positions: (T,) int32: the token's place in its example.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, config: RunConfig, task: Task) -> ProbeInputs:
        """Return the inputs for the runs on the data of ``config``."""
        per_example = config.model.tokens_per_example
        inputs, labels = task.validation_examples(-(-NUM_TOKENS // per_example))
        positions = torch.arange(per_example, dtype=torch.int32).repeat(len(inputs))
        # A text has a label a token already.
        per_token = labels.flatten() if labels.dim() > 1 else labels.repeat_interleave(per_example)
        return cls(inputs, per_token, positions)

    @property
    def tokens(self) -> torch.Tensor | None:
        """The token ids of a text, (T,) int32; None for images."""
        return None if self.inputs.is_floating_point() else self.inputs.flatten().to(torch.int32)

    def transformed(self) -> list[Transformed]:
        """Return every transformation of the inputs, family by family in the order of the doses."""
        if self.inputs.is_floating_point():
            return _transform_images(self.inputs)
        return [replace_tokens(self.inputs, dose) for dose in TEXT_DOSES["words"]]


def _transform_images(images: torch.Tensor) -> list[Transformed]:
    generator = torch.Generator().manual_seed(_SEED)
    made = {"shift": shift, "rotation": rotate, "brightness": brighten}
    found = []
    for family, doses in IMAGE_DOSES.items():
        sides = torch.randint(2, (len(images),), generator=generator) * 2.0 - 1.0
        for dose in doses:
            inputs = made[family](images, dose * sides)
            found.append(Transformed(f"{family}_{dose:g}", family, dose, inputs))
    return found


def shift(images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Move each image to the right by its number of ``pixels``, (B,); the edge is repeated."""
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    theta[:, 0, 2] = -2.0 * pixels / images.shape[-1]  # the width is 2 in affine_grid's units
    return _sample(images, theta)


def rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Turn each image about its centre by its ``degrees``, (B,), clockwise; edges are repeated."""
    angles = torch.deg2rad(degrees)
    cos, sin = angles.cos(), angles.sin()
    ratio = images.shape[-2] / images.shape[-1]  # pixels are square, affine_grid's units are not
    zero = torch.zeros_like(cos)
    rows = [torch.stack([cos, sin * ratio, zero], 1), torch.stack([-sin / ratio, cos, zero], 1)]
    return _sample(images, torch.stack(rows, 1))


def brighten(images: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Add to each image its number of standard deviations, (B,); images are standardised."""
    return images + deviations[:, None, None, None]


def _sample(images: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Not padded with zeros: a zero is the mean pixel, and the background is the darkest.
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def replace_tokens(tokens: torch.Tensor, percent: float) -> Transformed:
    """Replace ``percent`` of the tokens, (B, L), each by another token of the same inputs.

    One for one, so that every other token keeps its place: the attack of ``data.text.swap_words``
    moves them. The tokens of a smaller share are among those of a larger one.
    """
    generator = torch.Generator().manual_seed(_SEED)
    flat = tokens.flatten()
    order = torch.randperm(len(flat), generator=generator)
    substitutes = flat[torch.randperm(len(flat), generator=generator)]
    chosen = order[: round(percent / 100 * len(flat))]
    replaced = torch.zeros(len(flat), dtype=torch.bool)
    replaced[chosen] = True
    inputs = torch.where(replaced, substitutes, flat).reshape(tokens.shape)
    return Transformed(f"words_{percent:g}", "words", percent, inputs, replaced)
