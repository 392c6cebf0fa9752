"""Augmentation of images as tensors: random, seeded, and the same for every method of a seed.

Whatever is drawn comes from the generator that is handed in, on the CPU, so that a loader that is
started anew from its state gives the same images. Legend: B images, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from moge_bench.config import ImageDataConfig
from moge_bench.data.rand_augment import rand_augment

_ERASED_AREA = (0.02, 1 / 3)  # of an image; Zhong et al., arXiv 1708.04896, section 3
_ERASED_ASPECT = 0.3  # least height over width; the largest is its inverse
_CROP_ASPECT = 3 / 4
_TRIES = 10  # until a box that fits is drawn


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    flip: bool = False,
    crop_padding: int = 0,
    fill: float = 0.0,
) -> torch.Tensor:
    """Return ``images``, (B, C, H, W), each flipped and cropped at random, as a new tensor.

    Args:
        images: on the CPU, any float dtype.
        generator: first the flips are drawn and then the crops.
        flip: mirror left and right with probability 1/2.
        crop_padding: p > 0 pads every side by p pixels of ``fill`` and cuts H x W out of that at a
            uniformly random place (He et al., arXiv 1512.03385, section 4.2).
        fill: value of the padding.

    Raises ValueError for a negative ``crop_padding``.
    """
    if crop_padding < 0:
        raise ValueError(f"crop_padding must be at least 0, got {crop_padding}")
    if flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if not crop_padding:
        return images
    (count, _, height, width), p = images.shape, crop_padding
    padded = F.pad(images, (p, p, p, p), value=fill)
    top, left = torch.randint(0, 2 * p + 1, (2, count, 1), generator=generator)
    rows, cols = top + torch.arange(height), left + torch.arange(width)
    index = torch.arange(count)[:, None, None]
    # Advanced indices around a slice come first: (B, H, W, C).
    return padded[index, :, rows[:, :, None], cols[:, None, :]].movedim(-1, 1).contiguous()


def augment_pixels(
    images: Sequence[torch.Tensor], generator: torch.Generator, data: ImageDataConfig, size: int
) -> torch.Tensor:
    """Return images with pixels in 0..1 as ``data`` says, (B, C, size, size) float32.

    In this order: resized crop, flip, crop, RandAugment. ``images`` are (C, H, W), each of its own
    size where ``data.resized_crop`` cuts and resizes it, else size x size. Padding is black.
    """
    if data.resized_crop is not None:
        images = [
            resized_crop(image, draw_crop(image, generator, data.resized_crop), size)
            for image in images
        ]
    batch = torch.stack(list(images))
    batch = augment(batch, generator, flip=data.flip, crop_padding=data.crop_padding)
    return rand_augment(batch, generator, data.rand_augment) if data.rand_augment else batch


def draw_crop(
    image: torch.Tensor, generator: torch.Generator, least: float
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part of ``image``, (C, H, W).

    Its area is uniform between ``least`` of the image and all of it, the logarithm of its aspect
    between those of 3/4 and 4/3 (Szegedy et al., arXiv 1409.4842). Where ten draws do not fit: the
    largest centred part of an aspect in that range. As many numbers are drawn whatever fits.
    """
    height, width = image.shape[-2:]
    draws = torch.rand(_TRIES, 4, generator=generator, dtype=torch.float64).tolist()
    for area, aspect, down, right in draws:
        part = (least + (1 - least) * area) * height * width
        ratio = math.exp((2 * aspect - 1) * -math.log(_CROP_ASPECT))
        h, w = round(math.sqrt(part / ratio)), round(math.sqrt(part * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h = min(height, round(width / _CROP_ASPECT))
    w = min(width, round(height / _CROP_ASPECT))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(image: torch.Tensor, box: tuple[int, int, int, int], size: int) -> torch.Tensor:
    """Return the part ``box`` (top, left, height, width) of ``image``, (C, H, W), size x size.

    Bicubic with antialiasing, cut to 0..1.
    """
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width]
    if part.shape[-2:] == (size, size):
        return part
    resized = F.interpolate(part[None], size=(size, size), mode="bicubic", antialias=True)[0]
    return resized.clamp(0, 1)


def erase(images: torch.Tensor, generator: torch.Generator, probability: float) -> torch.Tensor:
    """Return standardised ``images``, (B, C, H, W), some with a rectangle of normal noise.

    Random erasing (Zhong et al., arXiv 1708.04896): an image is chosen with ``probability``; the
    rectangle has 2 to 33 % of the area and a height of 0.3 to 3.3 widths.
    """
    images = images.clone()
    channels, height, width = images.shape[1:]
    chosen = torch.rand(len(images), generator=generator) < probability
    for index in chosen.nonzero().flatten().tolist():
        for area, aspect, down, right in torch.rand(_TRIES, 4, generator=generator).tolist():
            low, high = _ERASED_AREA
            part = (low + (high - low) * area) * height * width
            ratio = math.exp((2 * aspect - 1) * -math.log(_ERASED_ASPECT))
            h, w = round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
                noise = torch.randn(channels, h, w, generator=generator)
                images[index, :, top : top + h, left : left + w] = noise
                break
    return images


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
    *,
    num_classes: int,
    mixup: float,
    cutmix: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch whose images are mixed with those of its reverse, and the shares of classes.

    x <- lam x + (1 - lam) x_reversed, lam ~ Beta(mixup, mixup) (arXiv 1710.09412), or a rectangle
    of 1 - lam of the area from x_reversed, lam ~ Beta(cutmix, cutmix) (arXiv 1905.04899): with both
    above 0 a fair coin decides for the batch. Labels (B,) become (B, num_classes) float32: lam of
    the one class, 1 - lam of the other, lam being the true share of the area.
    """
    height, width = images.shape[-2:]
    coin = float(torch.rand((), generator=generator))
    cuts = coin < 0.5 if mixup and cutmix else cutmix > 0
    lam = _beta(cutmix if cuts else mixup, generator)
    targets = F.one_hot(labels, num_classes).float()
    if cuts:
        side = math.sqrt(1 - lam)
        down, right = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        top, bottom = _cut(down * height, side * height, height)
        left, end = _cut(right * width, side * width, width)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:end] = images.flip(0)[:, :, top:bottom, left:end]
        lam = 1 - (bottom - top) * (end - left) / (height * width)
    else:
        mixed = lam * images + (1 - lam) * images.flip(0)
    return mixed, lam * targets + (1 - lam) * targets.flip(0)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Return a draw from Beta(alpha, alpha), as Y1 / (Y1 + Y2) of two Gamma(alpha) draws."""
    concentration = torch.full((2,), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(concentration, generator=generator).tolist()
    # Both are 0 only where alpha is so small that the draw is 0 or 1.
    return first / (first + second) if first + second > 0 else 1.0


def _cut(centre: float, length: float, most: int) -> tuple[int, int]:
    begin, end = round(centre - length / 2), round(centre + length / 2)
    return min(max(begin, 0), most), min(max(end, 0), most)
