"""Where images come from, one by one: arrays in memory, files on disk, encoded bytes in a table.

A source gives image i as (C, H, W) uint8. It can be sent to the worker processes of a DataLoader.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

SPLITS = ("training", "validation", "test")


class Source(Protocol):
    """Images by their number."""

    def __len__(self) -> int: ...

    def read(self, index: int, channels: int) -> torch.Tensor:
        """Return image ``index``, (channels, H, W) uint8; ValueError names what cannot be read."""
        ...


@dataclass(frozen=True)
class Labelled:
    """One split as it was found: a source, its labels, and where it lies, for errors."""

    source: Source
    labels: Sequence[int]
    where: str


@dataclass(frozen=True)
class ArraySource:
    """Images (n, H, W) or (n, H, W, C) uint8 in memory."""

    images: np.ndarray
    where: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, channels: int) -> torch.Tensor:
        """Return the image; a grey one may become three equal channels."""
        image = np.array(self.images[index])  # a copy: those of a file are read-only
        image = image[..., None] if image.ndim == 2 else image
        found = torch.from_numpy(image).movedim(-1, 0)
        if found.shape[0] == 1 and channels > 1:
            found = found.expand(channels, -1, -1)
        if found.shape[0] != channels:
            raise ValueError(
                f"{self.where} has images of {found.shape[0]} channels, and model.num_channels="
                f"{channels}"
            )
        return found.contiguous()


@dataclass(frozen=True)
class FileSource:
    """Image files that Pillow decodes."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, channels: int) -> torch.Tensor:
        """Return the file's image in ``channels``."""
        return decode(self.paths[index], str(self.paths[index]), channels)


@dataclass(frozen=True)
class EncodedSource:
    """Encoded images in the rows of a table.

    Attributes:
        rows: row -> the bytes of one image file.
        count: number of rows.
        where: the table, for errors.
    """

    rows: Callable[[int], Any]
    count: int
    where: str

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, channels: int) -> torch.Tensor:
        """Return the row's image in ``channels``."""
        where, value = f"{self.where}, row {index}", self.rows(index)
        if isinstance(value, dict):  # as `datasets` writes an image: its bytes, or where it lies
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return decode(Path(value), where, channels)
        if not isinstance(value, (bytes, bytearray)):
            raise ValueError(f"{where} must hold an encoded image, got {type(value).__name__}")
        return decode(io.BytesIO(value), where, channels)


def decode(file: Path | io.BytesIO, where: str, channels: int) -> torch.Tensor:
    """Return the image, (channels, H, W) uint8: grey for one channel, RGB for three.

    An image without a colour of its own in RGB, or with a palette, is converted; of 16 bits the
    upper 8 are taken; what is transparent lies on black. Raises ValueError naming ``where`` for
    what Pillow cannot decode, and for pixels of 32 bits, whose range is not known.
    """
    from PIL import Image

    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"model.num_channels must be 1 or 3 for decoded images, got {channels}")
    try:
        with Image.open(file) as image:
            array = np.array(_of_8_bits(image).convert(mode))
    # What Pillow raises for damaged files: SyntaxError too, of PNG, and a bomb of pixels.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is no image that can be decoded: {error}") from None
    found = torch.from_numpy(array)
    return found[None] if mode == "L" else found.movedim(-1, 0).contiguous()


def _of_8_bits(image: Any) -> Any:
    """Return the Pillow image with opaque pixels of 8 bits, which ``convert`` clips others to."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of 32 bits (mode {image.mode}), 8 or 16 are read")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image
