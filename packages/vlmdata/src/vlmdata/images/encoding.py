"""Pictures to bytes: JPEG without colour subsampling where detail was lost before, else PNG where it pays."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image

__all__ = ["encode"]

# A PNG may be this many times larger than the JPEG and is still worth its exact colours.
_PNG_WORTH = 1.5


def encode(image: Image.Image, *, lossy_source: bool, jpeg_quality: int) -> tuple[bytes, Literal["JPEG", "PNG"]]:
    """An RGB or L image as a file.

    Args:
        image: 8-bit RGB or grey.
        lossy_source: Whether it comes from a lossy file; then JPEG costs little more.
        jpeg_quality: Pillow's scale, 1 to 100.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    jpeg = buffer.getvalue()
    if lossy_source:
        return jpeg, "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    png = buffer.getvalue()
    return (jpeg, "JPEG") if len(png) > _PNG_WORTH * len(jpeg) else (png, "PNG")
