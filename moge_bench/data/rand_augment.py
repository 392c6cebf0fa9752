"""RandAugment on batches of images as tensors (Cubuk et al., arXiv 1909.13719).

Legend: B images, C channels; pixels are float32 in 0..1.

The fifteen operations and their strengths are those of the usual recipe for transformers (DeiT,
Swin), "increasing" with the magnitude: at 10 a rotation is 30 degrees. Deviations: an image is
resampled bilinearly, and its border is padded with black.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

NUM_OPS = 2  # one after the other
PROBABILITY = 0.5  # that an operation, once drawn, is carried out
SPREAD = 0.5  # standard deviation of the magnitude

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def rand_augment(
    images: torch.Tensor, generator: torch.Generator, magnitude: float
) -> torch.Tensor:
    """Return ``images``, (B, C, H, W) in 0..1, each after two operations drawn at random.

    The strength of each is drawn from Normal(magnitude, 0.5), cut to 0..10, its direction is a
    coin, and so is whether it is carried out. ``generator`` is on the CPU, and what it draws does
    not depend on the images.
    """
    count = len(images)
    for _ in range(NUM_OPS):
        chosen = torch.randint(len(OPS), (count,), generator=generator)
        strength = magnitude + SPREAD * torch.randn(count, generator=generator)
        sign, done = torch.randint(0, 2, (2, count), generator=generator) * 2 - 1
        strength = strength.clamp(0, 10) / 10
        changed = images.clone()
        for number, (_, op) in enumerate(OPS.items()):
            mine = ((chosen == number) & (done > 0)).nonzero().flatten()
            if len(mine):
                result = op(images[mine], strength[mine], sign[mine].float())
                changed[mine] = result.clamp(0, 1)
        images = changed
    return images


# An operation: images (B, C, H, W), strengths (B,) in 0..1, signs (B,) of -1 or 1 -> images.
Op = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _column(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Return the brightness, (B, 1, H, W); of other than three channels their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)


def _blend(degenerate: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """degenerate + factor (images - degenerate): 0 the one, 1 the other, above 1 beyond it."""
    return degenerate + _column(factor) * (images - degenerate)


def _factor(strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    return 1 + 0.9 * sign * strength


def _warp(images: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _affine(images: torch.Tensor, **entries: torch.Tensor) -> torch.Tensor:
    """Sample at the identity with some entries of its (2, 3) matrix replaced: xx, xy, xo, yx..."""
    theta = torch.eye(2, 3).repeat(len(images), 1, 1)
    for name, value in entries.items():
        theta[:, "xy".index(name[0]), "xyo".index(name[1])] = value
    return _warp(images, theta)


def autocontrast(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..1; one of a single value stays."""
    low = images.amin((2, 3), keepdim=True)
    spread = images.amax((2, 3), keepdim=True) - low
    return torch.where(spread > 0, (images - low) / spread.clamp_min(1e-12), images)


def equalize(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Give each channel an even histogram of its 256 levels; one of a single value stays."""
    levels = (images * 255).round().long().flatten(2)  # (B, C, H W)
    histogram = torch.zeros((*levels.shape[:2], 256), dtype=torch.int64)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    below = histogram.cumsum(2)
    lowest = torch.where(histogram > 0, below, levels.shape[2]).amin(2, keepdim=True)
    spread = levels.shape[2] - lowest
    table = (below - lowest).clamp_min(0) / spread.clamp_min(1)
    even = table.gather(2, levels).reshape(images.shape).to(images.dtype)
    return torch.where(spread[..., None] > 0, even, images)


def invert(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """1 - x."""
    return 1 - images


def rotate(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Turn by up to 30 degrees."""
    angle = sign * strength * math.radians(30)
    ratio = images.shape[-2] / images.shape[-1]
    return _affine(
        images, xx=angle.cos(), xy=angle.sin() * ratio, yx=-angle.sin() / ratio, yy=angle.cos()
    )


def posterize(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Keep the upper 4 to 0 of 8 bits."""
    dropped = _column(2.0 ** (8 - (4 - (strength * 4).floor())))
    return ((images * 255).round() / dropped).floor() * dropped / 255


def solarize(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Invert what is at least 1 - strength."""
    return torch.where(images >= _column(1 - strength), 1 - images, images)


def solarize_add(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Add up to 110 of 255 to what is below one half."""
    return torch.where(images < 128 / 255, images + _column(strength * 110 / 255), images)


def color(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Away from grey or towards it."""
    return _blend(_grey(images).expand_as(images), images, _factor(strength, sign))


def contrast(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Away from the mean brightness or towards it."""
    return _blend(_grey(images).mean((2, 3), keepdim=True), images, _factor(strength, sign))


def brightness(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Away from black or towards it."""
    return _blend(torch.zeros_like(images), images, _factor(strength, sign))


def sharpness(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Away from the image smoothed by 3 x 3 pixels or towards it; the border stays."""
    channels = images.shape[1]
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5
    kernel = (kernel / 13).expand(channels, 1, 3, 3)
    smooth = images.clone()
    if min(images.shape[2:]) > 2:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel, groups=channels)
    return _blend(smooth, images, _factor(strength, sign))


def shear_x(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Slant by up to 0.3 pixels a row."""
    return _affine(images, xy=sign * strength * 0.3 * images.shape[-2] / images.shape[-1])


def shear_y(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Slant by up to 0.3 pixels a column."""
    return _affine(images, yx=sign * strength * 0.3 * images.shape[-1] / images.shape[-2])


def translate_x(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Move sideways by up to 45 % of the width."""
    return _affine(images, xo=sign * strength * 0.45 * 2)


def translate_y(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Move up or down by up to 45 % of the height."""
    return _affine(images, yo=sign * strength * 0.45 * 2)


OPS: dict[str, Op] = {
    op.__name__: op
    for op in (
        autocontrast, equalize, invert, rotate, posterize, solarize, solarize_add, color, contrast,
        brightness, sharpness, shear_x, shear_y, translate_x, translate_y,
    )
}  # fmt: skip
