from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from vlmdata.images.vips import encode_png, reduce_picture

CORE = cast(Any, Image).core
MODES = ("L", "RGB", "CMYK")


def drawing(width: int, height: int, mode: str) -> Image.Image:
    """Soft noise with sharp lines in it, also along all four edges."""
    rng = np.random.default_rng(width)
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = rng.integers(0, 256, (height // 8, width // 8, bands), dtype=np.uint8)
    image = Image.fromarray(coarse.squeeze(), mode).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width - 1, height - 1), outline=(200,) * bands if bands > 1 else 200, width=3)
    for x in range(20, width, 90):
        draw.line((x, 10, width - x, height - 10), fill=(15,) * bands if bands > 1 else 15, width=3)
    return image


def apart(first: Image.Image, second: Image.Image) -> np.ndarray:
    """The differences of two pictures in levels, without their outermost pixels."""
    assert (first.mode, first.size) == (second.mode, second.size)
    return np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int))[2:-2, 2:-2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(900, 640), (611, 432), (333, 800), (100, 71)])
def test_smaller_pictures_are_those_of_pillows_lanczos(mode: str, size: tuple[int, int]) -> None:
    image = drawing(1111, 801, mode)
    reduced = reduce_picture(image, size)
    assert reduced is not None
    levels = apart(reduced, image.resize(size, Image.Resampling.LANCZOS))
    # libvips rounds places to a 64th of a pixel, and cuts overshoots off after the other pass
    assert levels.mean() <= 0.8
    assert np.quantile(levels, 0.99) <= 4


@pytest.mark.parametrize("width", [1501, 1503, 1765])
def test_a_column_that_reaches_beyond_the_picture_does_not_move_the_others(width: int) -> None:
    # as a JPEG decoder halves a picture of odd size: the last column stands for half a pixel
    image = drawing(width, 1000, "RGB")
    extent = (width - 0.5, 999.5)
    size = (1000, 655)
    right = image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, *extent))
    reduced = reduce_picture(image, size, extent)
    assert reduced is not None
    shifted = image.resize(size, Image.Resampling.LANCZOS, box=(0.25, 0.25, extent[0], extent[1]))
    assert apart(reduced, right).mean() < 0.8
    assert apart(reduced, right).mean() < apart(shifted, right).mean() / 2


def test_what_cannot_be_placed_exactly_is_left_to_others() -> None:
    # two pixels in one, and half a pixel too many: no number of whole pixels makes up for that
    assert reduce_picture(Image.new("RGB", (2001, 1500)), (1000, 750), (2000.5, 1500)) is None


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_in_several_pieces_of_memory_is_read_whole(mode: str) -> None:
    image = drawing(700, 500, mode)
    size = CORE.get_block_size()
    CORE.set_block_size(1 << 16)
    try:
        scattered = image.copy()
    finally:
        CORE.set_block_size(size)
    with pytest.raises(ValueError, match=r"contiguous|multiple"):
        pa.array(cast(Any, scattered))
    first, second = reduce_picture(image, (400, 300)), reduce_picture(scattered, (400, 300))
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_files_hold_the_picture(mode: str) -> None:
    image = drawing(300, 200, mode)
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", mode, image.size)
        assert read.tobytes() == image.tobytes()


def digest() -> str:
    pictures = [reduce_picture(drawing(1111, 801, mode), (611, 432)) for mode in MODES]
    small = [picture for picture in pictures if picture is not None]
    assert len(small) == len(MODES)
    parts = [picture.tobytes() for picture in small] + [encode_png(picture) for picture in small[:2]]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_a_processor_without_vector_code_makes_the_same_bytes() -> None:
    environment = os.environ | {"VIPS_NOVECTOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    plain = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == digest()
