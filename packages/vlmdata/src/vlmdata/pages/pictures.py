"""Pictures of the data in a page: the stored file itself where it is small, else a smaller copy."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlmdata.pages.html import Child, Html, tag

__all__ = ["data_uri", "show_stored", "shrink"]

# The next one is for pictures that stay large with the one before: noise, dense print.
_JPEG_QUALITIES = (80, 50, 25)


def data_uri(data: bytes, file_format: str) -> str:
    """Return an encoded JPEG, PNG or WebP as the address of an image."""
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(data).decode()}"


def shrink(data: bytes, file_format: str, side_px: int, most_bytes: int) -> tuple[bytes, str]:
    """Return a stored image as it is, or where it has more than `most_bytes` a JPEG of at most `side_px` a side."""
    if len(data) <= most_bytes:
        return data, file_format
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (side_px, side_px))
        image.thumbnail((side_px, side_px), Image.Resampling.BILINEAR)
        copy = image.convert("RGB")
    for quality in _JPEG_QUALITIES:
        out = io.BytesIO()
        copy.save(out, "JPEG", quality=quality)
        if out.tell() <= most_bytes:
            break
    return out.getvalue(), "JPEG"


def show_stored(
    stored: Mapping[str, Any], info: Mapping[str, Any], *caption: Child, side_px: int | None = None
) -> Html:
    """Return a figure of a stored image.

    Args:
        stored: of the column `images`.
        info: of the column `image_info`, for the same image.
        caption: what stands below it.
        side_px: longest side of the copy that is shown where the file is not small; None shows the file itself.
    """
    data, file_format = stored["bytes"], info["format"]
    if side_px is not None:
        # about as many bytes as a JPEG of that size has, so that a copy would not be smaller
        data, file_format = shrink(data, file_format, side_px, side_px * side_px // 3)
    image = tag("img", alt=stored["path"] or "image", src=data_uri(data, file_format))
    return tag("figure", image, tag("figcaption", *caption))
