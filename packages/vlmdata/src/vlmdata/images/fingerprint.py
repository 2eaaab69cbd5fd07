"""What identifies a picture: a hash of its pixels or of their code, a perceptual hash, and a small copy.

The perceptual hash is made as pHash and PDQ are (Zauner, "Implementation and benchmarking of perceptual image hash
functions", 2010), from the signs of cosine-transform coefficients of a 64x64 grey copy, but of frequencies 8 to 23 on
both axes instead of the lowest ones. Pages, tables and charts of one layout agree in the lowest frequencies whatever
they say, and a small mark on white paper shifts many of those at once; benchmarks/near_duplicates.py has the figures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image, ImageChops

from vlmdata.images.pixels import iterate_pixels, read_levels

__all__ = [
    "PHASH_BYTES",
    "THUMBNAIL_BYTES",
    "Fingerprint",
    "fingerprint",
    "hash_code",
    "hash_pixels",
    "perceptual_hash",
    "read_grey",
    "sharpest_step",
]

PHASH_BYTES = 32
GREY_SIDE = 64
COLOR_SIDE = 8
THUMBNAIL_BYTES = GREY_SIDE * GREY_SIDE + 2 * COLOR_SIDE * COLOR_SIDE

_FIRST_FREQUENCY, _FREQUENCIES = 8, 16
# Whole squares are averaged down to twice the wanted size; a softer filter than LANCZOS does the rest, whose overshoot
# would be cut off at white, and so differ between a page and its darker copy.
_LEAST_REDUCED_SIDE = 2 * GREY_SIDE
_FILTER = Image.Resampling.BICUBIC
# Below this root mean square a coefficient is no more than what a noise of one grey level gives.
_FLAT_COEFFICIENT = 128.0
_NEUTRAL_COLOR = bytes([128]) * (2 * COLOR_SIDE * COLOR_SIDE)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What near-duplicates are told by.

    Attributes:
        phash: 256-bit perceptual hash, 32 bytes.
        thumbnail: 64x64 luma, then 8x8 Cb and 8x8 Cr, row by row.
        strength: root mean square of the coefficients whose signs are the hash.
    """

    phash: bytes
    thumbnail: bytes
    strength: float

    @property
    def is_flat(self) -> bool:
        """Whether the picture has too little content for its perceptual hash to mean much."""
        return self.strength < _FLAT_COEFFICIENT


def hash_pixels(image: Image.Image) -> str:
    """XXH3-128 of the size and the RGB0 pixels of an image; a grey picture hashes alike in mode L and RGB."""
    digest = xxhash.xxh3_128(f"{image.width}x{image.height}:".encode())
    for piece in iterate_pixels(image):
        digest.update(piece.data)
    return digest.hexdigest()


def hash_code(pieces: Iterable[bytes]) -> str:
    """XXH3-128 of the coded picture of a file, given as `containers.coded_picture` does."""
    digest = xxhash.xxh3_128(b"code:")
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def fingerprint(
    image: Image.Image, size: tuple[float, float] | None = None, *, grey: Image.Image | None = None
) -> Fingerprint:
    """The signals for near-duplicates of a picture.

    Args:
        image: RGB, YCbCr or L.
        size: (width, height) in px of what it shows, where its last column or row reaches beyond.
        grey: The same picture in more detail, of mode L, where there is one.
    """
    reduced, box = _reduce(image, size or image.size)
    levels = read_grey(reduced)
    fine, fine_box = (levels, box) if grey is None else _reduce(grey, grey.size)
    copy = fine.resize((GREY_SIDE, GREY_SIDE), _FILTER, box=fine_box)
    color = _NEUTRAL_COLOR
    if image.mode != "L":
        cells = reduced.resize((COLOR_SIDE, COLOR_SIDE), Image.Resampling.BOX, box=box)
        pixels = (cells if cells.mode == "YCbCr" else cells.convert("YCbCr")).tobytes()
        color = pixels[1::3] + pixels[2::3]
    phash, strength = perceptual_hash(read_levels(copy))
    return Fingerprint(phash, copy.tobytes() + color, strength)


def read_grey(image: Image.Image) -> Image.Image:
    """The luma of an RGB, YCbCr or L image, in mode L."""
    if image.mode == "L":
        return image
    return image.getchannel(0) if image.mode == "YCbCr" else image.convert("L")


def _reduce(image: Image.Image, size: tuple[float, float]) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Average whole squares; the last one of a row may reach beyond the picture, and the box leaves that part out."""
    factor = max(1, min(image.size) // _LEAST_REDUCED_SIDE)
    return (image.reduce(factor) if factor > 1 else image), (0, 0, size[0] / factor, size[1] / factor)


def perceptual_hash(levels: npt.NDArray[np.uint8]) -> tuple[bytes, float]:
    """The 256-bit hash of a (64, 64) grey copy, and the root mean square of its coefficients."""
    basis = _cosines()
    coefficients = basis @ levels.astype(np.float64) @ basis.T
    strength = math.sqrt(np.vdot(coefficients, coefficients) / coefficients.size)
    return np.packbits(coefficients > 0).tobytes(), strength


def sharpest_step(image: Image.Image) -> int:
    """The mean difference between neighbouring pixels, in grey levels, in the 4x4 pixels where it is largest."""
    grey = read_grey(image)
    right, bottom = grey.width - 1, grey.height - 1
    here = grey.crop((0, 0, right, bottom))
    aside = ImageChops.difference(here, grey.crop((1, 0, right + 1, bottom)))
    below = ImageChops.difference(here, grey.crop((0, 1, right, bottom + 1)))
    return cast(tuple[int, int], ImageChops.lighter(aside, below).reduce(4).getextrema())[1]


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """(16, 64) rows 8 to 23 of the unnormalised type-II discrete cosine transform, as scipy scales it."""
    frequency = np.arange(_FIRST_FREQUENCY, _FIRST_FREQUENCY + _FREQUENCIES)[:, None]
    position = np.arange(GREY_SIDE)[None]
    return 2.0 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * GREY_SIDE))
