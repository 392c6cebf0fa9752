"""What becomes of pixels that are not opaque and of 8 bits."""

import io

import numpy as np
import pytest
from PIL import Image

from moge_bench.data.image_sources import decode


def encoded(array, mode=None, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, form) if mode else Image.fromarray(array).save(
        file, form
    )
    file.seek(0)
    return file


def test_of_16_bits_the_upper_8_are_taken():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = decode(encoded(ramp), "x", 1)
    assert found.flatten().tolist() == list(range(256))
    assert decode(encoded(ramp), "x", 3)[2].flatten().tolist() == list(range(256))


def test_what_is_transparent_lies_on_black():
    pixels = np.full((1, 3, 4), 200, np.uint8)
    pixels[0, :, 3] = (255, 51, 0)  # opaque, a fifth, nothing: 200, 40, 0
    assert decode(encoded(pixels), "x", 3)[1].flatten().tolist() == [200, 40, 0]


def test_pixels_of_32_bits_are_refused():
    with pytest.raises(ValueError, match=r"a.tif is no image .* of 32 bits \(mode F\), 8 or 16"):
        decode(encoded(np.zeros((2, 2), np.float32), form="TIFF"), "a.tif", 1)
