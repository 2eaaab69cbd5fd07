"""The pixels of a Pillow image as numbers, in place: Pillow's own `tobytes` and `numpy.asarray` copy them twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

__all__ = ["iterate_pixels", "read_levels"]

# Pillow keeps a larger picture in several pieces of memory, which only a copy joins.
_JOINED_PIXELS = 1 << 20
# A piece stays in the processor's cache while it is worked on.
_PIECE_PIXELS = 1 << 16
_COLOR_BYTES = np.uint32(0x00FFFFFF)
_GREY_TO_COLOR = np.uint32(0x00010101)


def read_levels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The (H, W) uint8 levels of an image of mode L, not to be written to."""
    if image.width * image.height > _JOINED_PIXELS:
        return np.asarray(image)
    return _memory(image, np.dtype(np.uint8)).reshape(image.height, image.width)


def iterate_pixels(image: Image.Image) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the pixels of an RGB or L image in pieces, row by row from the top: red + 256 green + 65,536 blue.

    Each piece is overwritten by the next.
    """
    scratch = np.empty(_PIECE_PIXELS, np.uint32)
    rows = max(1, _JOINED_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        whole = image.height <= rows
        part = image if whole else image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels = _memory(part, np.dtype(np.uint8 if part.mode == "L" else "<u4"))
        for begin in range(0, len(pixels), _PIECE_PIXELS):
            piece = pixels[begin : begin + _PIECE_PIXELS]
            out = scratch[: len(piece)]
            if part.mode == "L":
                yield np.multiply(piece, _GREY_TO_COLOR, out=out)
            else:
                # Pillow pads a colour to four bytes, and leaves in the fourth what happens to be there.
                yield np.bitwise_and(piece, _COLOR_BYTES, out=out)


def _memory(image: Image.Image, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The memory of a decoded image of one piece, which stays alive with the array."""
    array: Any = pa.array(cast(Any, image))
    values = array if image.mode == "L" else array.flatten()
    return np.frombuffer(values.buffers()[1], dtype)
