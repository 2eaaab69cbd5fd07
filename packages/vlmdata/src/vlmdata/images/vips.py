"""libvips, whose vector code makes pictures smaller, and writes PNG files, in a third of the time that Pillow takes.

It decodes nothing: what files are refused, and why, is Pillow's to say. Writing PNG files starts threads, so a process
that did so must not be forked and write more in the child; the workers of a build are forked before.
"""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import pyvips
from PIL import Image

__all__ = ["MOST_REDUCTION", "encode_png", "reduce_picture"]

MOST_REDUCTION = 100.0
"""libvips refuses filters that span more than 2,000 px, a LANCZOS filter of 333 px to one."""

# How Pillow keeps the pixels of its modes in memory, and how many bytes each takes.
_IN_MEMORY = {"L": ("L", 1), "RGB": ("RGBX", 4), "CMYK": ("CMYK", 4)}
# Few enough to stay in the processor's cache on their way through both passes.
_ROWS_AT_ONCE = 64
# What is added at the right or below, at most, in px of the result.
_MOST_ADDED = 16
# How far the pixels of the result may lie from where they belong, in px of the picture that is made smaller.
_MOST_SHIFT = 0.06
# The least of all filters on charts and text, next to trying them all; and levels above 3 cost more than they spare.
_PNG_FILTER, _PNG_LEVEL = "up", 3

# Every picture is another: what libvips remembers of the last ones is never asked for again.
pyvips.cache_set_max(0)


def reduce_picture(
    image: Image.Image, size: tuple[int, int], extent: tuple[float, float] | None = None
) -> Image.Image | None:
    """Make a picture smaller with a LANCZOS filter.

    Args:
        image: Of mode L, RGB or CMYK.
        size: (width, height) in px of the result, in neither direction larger nor `MOST_REDUCTION` times smaller.
        extent: (width, height) in px of what the picture shows, where its last column or row reaches beyond it by less
            than a pixel.

    Returns:
        The smaller picture; None where libvips cannot place its pixels exactly enough.
    """
    extent = extent or image.size
    steps = (extent[0] / size[0], extent[1] / size[1])
    added = [_plan_margin(image.size[axis], steps[axis], size[axis]) for axis in (0, 1)]
    if added[0] is None or added[1] is None:
        return None
    raw_mode, bands = _IN_MEMORY[image.mode]
    picture = pyvips.Image.new_from_memory(_read_memory(image, raw_mode), *image.size, bands, "uchar")
    if added[1]:
        picture = picture.embed(0, 0, image.width, image.height + added[1], extend="copy")
    picture = picture.reducev(steps[1], kernel="lanczos3")
    # Wider only now: of the rows of the whole picture, each would be copied.
    if added[0]:
        picture = picture.embed(0, 0, image.width + added[0], picture.height, extend="copy")
    region = pyvips.Region.new(picture.reduceh(steps[0], kernel="lanczos3"))
    # Fetched piece by piece in this thread: libvips would start threads of its own to make an image of it.
    pieces = [
        region.fetch(0, top, size[0], min(_ROWS_AT_ONCE, size[1] - top)) for top in range(0, size[1], _ROWS_AT_ONCE)
    ]
    return Image.frombytes(image.mode, size, b"".join(pieces), "raw", raw_mode)


def encode_png(image: Image.Image) -> bytes:
    """An RGB or L image as a PNG file."""
    bands = len(image.getbands())
    picture = pyvips.Image.new_from_memory(image.tobytes(), *image.size, bands, "uchar")
    return cast(bytes, picture.pngsave_buffer(compression=_PNG_LEVEL, filter=_PNG_FILTER, keep="none"))


def _plan_margin(length: int, step: float, wanted: int) -> int | None:
    """How many px to add behind a side of `length` px, so that the first `wanted` px of the result fall into place.

    libvips puts the middle of a result onto the middle of what it is made from, where Pillow, and a JPEG decoder at a
    smaller scale, begin at the same edge. Both are the same where the side is a whole multiple of `step`.
    """
    best: tuple[float, int] | None = None
    for more in range(_MOST_ADDED + 1):
        margin = round((wanted + more) * step) - length
        shift = abs(length + margin - (wanted + more) * step) / 2
        if margin >= 0 and (best is None or shift < best[0] - 1e-6):
            best = (shift, margin)
    return best[1] if best is not None and best[0] <= _MOST_SHIFT else None


def _read_memory(image: Image.Image, raw_mode: str) -> Any:
    """The samples of a picture as a buffer, in place where Pillow keeps them in one piece."""
    try:
        array: Any = pa.array(cast(Any, image))
    except ValueError:  # it is in several pieces, as large pictures are outside a `decoder_session`
        return image.tobytes("raw", raw_mode)
    return (array if image.mode == "L" else array.flatten()).buffers()[1]
