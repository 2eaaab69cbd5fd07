"""The pixels of a Pillow image as numbers, in place: Pillow's own way (`tobytes`, `numpy.asarray`) copies them twice."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

__all__ = ["read_levels", "read_pixels"]

# Pillow keeps a larger picture in several pieces of memory.
_PIECE_PIXELS = 1 << 20
_COLOR_BYTES = np.uint32(int.from_bytes(b"\xff\xff\xff\x00", "little"))
_GREY_TO_COLOR = np.uint32(int.from_bytes(b"\x01\x01\x01\x00", "little"))


def read_levels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The (H, W) uint8 levels of an image of mode L with at most a million pixels, as a view that must not be kept."""
    return np.frombuffer(_buffer(image), np.uint8).reshape(image.height, image.width)


def read_pixels(image: Image.Image) -> list[npt.NDArray[np.uint32]]:
    """The pixels of an RGB or L image row by row, in pieces of whole rows; equal colours are equal numbers."""
    rows = max(1, _PIECE_PIXELS // max(1, image.width))
    if image.height <= rows:
        return [_as_numbers(image)]
    boxes = ((0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows))
    return [_as_numbers(image.crop(box)) for box in boxes]


def _as_numbers(image: Image.Image) -> npt.NDArray[np.uint32]:
    if image.mode == "L":
        return np.multiply(np.frombuffer(_buffer(image), np.uint8), _GREY_TO_COLOR, dtype=np.uint32)
    # Pillow pads a colour to four bytes, and leaves in the fourth what happens to be there.
    return np.bitwise_and(np.frombuffer(_buffer(image), "<u4"), _COLOR_BYTES)


def _buffer(image: Image.Image) -> pa.Buffer:
    """The memory of a decoded image, which stays alive with what is returned."""
    array: Any = pa.array(cast(Any, image))
    values = array if image.mode == "L" else array.flatten()
    return cast("pa.Buffer", values.buffers()[1])
