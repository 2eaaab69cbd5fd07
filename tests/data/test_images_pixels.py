"""Pixels read in place against Pillow's own copies."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmdata.images.pixels import iterate_pixels, read_levels


def noise(width: int, height: int, mode: str) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


# The third takes more memory than Pillow allots at once, the fourth has fewer rows than pieces.
@pytest.mark.parametrize("size", [(1, 1), (301, 217), (2500, 2001), (70_001, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_tobytes(size: tuple[int, int], mode: str) -> None:
    image = noise(*size, mode)
    read = np.concatenate([piece.copy() for piece in iterate_pixels(image)])
    channels = [np.frombuffer(band.tobytes(), np.uint8).astype(np.uint32) for band in image.convert("RGB").split()]
    assert np.array_equal(read, channels[0] | channels[1] << 8 | channels[2] << 16)


def test_what_pads_a_colour_does_not_count() -> None:
    image = noise(40, 30, "RGB")
    padded = Image.merge("RGBX", [*image.split(), Image.new("L", image.size, 77)])
    resized = padded.convert("RGB").resize((40, 30), Image.Resampling.LANCZOS, box=(0, 0, 40, 30))
    assert np.array_equal(next(iterate_pixels(image)).copy(), next(iterate_pixels(resized)).copy())


def test_levels_are_those_of_asarray() -> None:
    image = noise(64, 61, "L")
    assert np.array_equal(read_levels(image), np.asarray(image))
