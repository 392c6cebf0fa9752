"""Augmentation of batches of images: random, seeded, and the same for every method of a seed."""

from __future__ import annotations

import torch
from torch.nn import functional


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
        generator: what is drawn comes from it alone, first the flips and then the crops, so that
            a loader that is started anew from its state gives the same images.
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
    padded = functional.pad(images, (p, p, p, p), value=fill)
    top, left = torch.randint(0, 2 * p + 1, (2, count, 1), generator=generator)
    rows, cols = top + torch.arange(height), left + torch.arange(width)
    index = torch.arange(count)[:, None, None]
    # Advanced indices around a slice come first: (B, H, W, C).
    return padded[index, :, rows[:, :, None], cols[:, None, :]].movedim(-1, 1).contiguous()
