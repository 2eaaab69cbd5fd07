"""Pictures to bytes: JPEG without colour subsampling where detail was lost before, else PNG where it pays."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, ImageChops

__all__ = ["encode"]

# A PNG may be this many times larger than the JPEG and is still worth its exact colours.
_PNG_WORTH = 1.5
# Smaller and faster than zlib's default on rendered pages and charts; on photographs the PNG is not kept anyway.
_PNG_COMPRESS_LEVEL = 3
# Strips spread over a picture tell a photograph by a far larger PNG, without encoding all of it.
_STRIPS, _STRIP_ROWS = 8, 16
_HOPELESS_PNG = 2.5


def encode(image: Image.Image, *, lossy_source: bool, jpeg_quality: int) -> tuple[bytes, Literal["JPEG", "PNG"]]:
    """An RGB or L image as a file; an RGB picture without colour is written as grey, which decodes to the same.

    Args:
        image: 8-bit RGB or grey.
        lossy_source: Whether it comes from a lossy file; then JPEG costs little more.
        jpeg_quality: Pillow's scale, 1 to 100.
    """
    if image.mode == "RGB" and not lossy_source and _is_grey(image):
        image = image.getchannel(0)
    if not lossy_source and image.height > 2 * _STRIPS * _STRIP_ROWS:
        strips = _sample_strips(image)
        if len(_to_png(strips)) > _HOPELESS_PNG * len(_to_jpeg(strips, jpeg_quality)):
            lossy_source = True
    jpeg = _to_jpeg(image, jpeg_quality)
    if lossy_source:
        return jpeg, "JPEG"
    png = _to_png(image)
    return (jpeg, "JPEG") if len(png) > _PNG_WORTH * len(jpeg) else (png, "PNG")


def _to_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_COMPRESS_LEVEL)
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
