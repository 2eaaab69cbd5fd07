"""Pictures to bytes: JPEG without colour subsampling where detail was lost before, else PNG where it pays."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, ImageChops

from vlmdata.images.containers import strip_png
from vlmdata.images.vips import encode_png

__all__ = ["encode"]

# A PNG may be this many times larger than the JPEG and is still worth its exact colours.
_PNG_WORTH = 1.5
# Strips spread over a picture tell which of the two it will be, so that the whole of it is encoded once.
_STRIPS, _STRIP_ROWS = 8, 16


def encode(image: Image.Image, *, lossy_source: bool, jpeg_quality: int) -> tuple[bytes, Literal["JPEG", "PNG"]]:
    """An RGB or L image as a file; an RGB picture without colour is written as grey, which decodes to the same.

    Args:
        image: 8-bit RGB or grey.
        lossy_source: Whether it comes from a lossy file; then JPEG costs little more.
        jpeg_quality: Pillow's scale, 1 to 100.
    """
    if image.mode == "RGB" and not lossy_source and _is_grey(image):
        image = image.getchannel(0)
    if lossy_source:
        return _to_jpeg(image, jpeg_quality), "JPEG"
    sample = _sample_strips(image) if image.height > 2 * _STRIPS * _STRIP_ROWS else image
    png, jpeg = encode_png(sample), _to_jpeg(sample, jpeg_quality)
    if len(png) > _PNG_WORTH * len(jpeg):
        return (jpeg if sample is image else _to_jpeg(image, jpeg_quality)), "JPEG"
    # without how many pixels a metre has, which libvips makes up
    stripped = strip_png(png if sample is image else encode_png(image))
    assert stripped is not None
    return stripped, "PNG"


def _to_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _sample_strips(image: Image.Image) -> Image.Image:
    sample = Image.new(image.mode, (image.width, _STRIPS * _STRIP_ROWS))
    for strip in range(_STRIPS):
        top = (image.height - _STRIP_ROWS) * strip // (_STRIPS - 1)
        sample.paste(image.crop((0, top, image.width, top + _STRIP_ROWS)), (0, strip * _STRIP_ROWS))
    return sample


def _is_grey(image: Image.Image) -> bool:
    """Whether the three channels of an RGB image are equal; most colour pictures are told by a few pixels."""
    few = image.resize((min(16, image.width), min(16, image.height)), Image.Resampling.NEAREST)
    return _has_equal_channels(few) and _has_equal_channels(image)


def _has_equal_channels(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
