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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from vlmdata.images.pixels import iterate_pixels

__all__ = [
    "PHASH_BYTES",
    "THUMBNAIL_BYTES",
    "Fingerprint",
    "fingerprint",
    "fingerprint_apart",
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

_Size: TypeAlias = tuple[float, float]
_Box: TypeAlias = tuple[float, float, float, float]


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


def fingerprint(image: Image.Image) -> Fingerprint:
    """The signals for near-duplicates of an RGB or L image."""
    reduced, box = _reduce(image, image.size)
    return _sign(read_grey(reduced), box, reduced, box)


def fingerprint_apart(luma: Image.Image, luma_size: _Size, image: Image.Image, size: _Size) -> Fingerprint:
    """The signals of a picture whose luma is at hand by itself, in the same or in another size.

    Args:
        luma: Of mode L.
        luma_size: (width, height) in px of what it shows: its last column and row may reach beyond the picture.
        image: The picture in YCbCr or L, for its colours.
        size: Of what that shows.
    """
    return _sign(*_reduce(luma, luma_size), *_reduce(image, size))


def _sign(grey: Image.Image, grey_box: _Box, image: Image.Image, box: _Box) -> Fingerprint:
    copy = grey.resize((GREY_SIDE, GREY_SIDE), _FILTER, box=grey_box).tobytes()
    color = _NEUTRAL_COLOR
    if image.mode != "L":
        cells = image.resize((COLOR_SIDE, COLOR_SIDE), Image.Resampling.BOX, box=box)
        pixels = (cells if cells.mode == "YCbCr" else cells.convert("YCbCr")).tobytes()
        color = pixels[1::3] + pixels[2::3]
    phash, strength = perceptual_hash(np.frombuffer(copy, np.uint8).reshape(GREY_SIDE, GREY_SIDE))
    return Fingerprint(phash, copy + color, strength)


def read_grey(image: Image.Image) -> Image.Image:
    """The luma of an RGB, YCbCr or L image, in mode L."""
    if image.mode == "L":
        return image
    return image.getchannel(0) if image.mode == "YCbCr" else image.convert("L")


def _reduce(image: Image.Image, size: _Size) -> tuple[Image.Image, _Box]:
    """Average whole squares; the last one of a row may reach beyond the picture, and the box leaves that part out."""
    factor = max(1, min(image.size) // _LEAST_REDUCED_SIDE)
    return (image.reduce(factor) if factor > 1 else image), (0, 0, size[0] / factor, size[1] / factor)


def perceptual_hash(levels: npt.NDArray[np.uint8]) -> tuple[bytes, float]:
    """The 256-bit hash of a (64, 64) grey copy, and the root mean square of its coefficients."""
    basis = _cosines()
    coefficients = basis @ levels.astype(np.float64) @ basis.T
    strength = math.sqrt(np.vdot(coefficients, coefficients) / coefficients.size)
    return np.packbits(coefficients > 0).tobytes(), strength


def sharpest_step(levels: npt.NDArray[np.uint8]) -> float:
    """The mean difference between diagonal neighbours among (H, W) grey levels, in the 4x4 where it is largest."""
    height, width = ((side - 1) // 4 * 4 for side in levels.shape)
    here, there = levels[:height, :width], levels[1 : height + 1, 1 : width + 1]
    steps = np.maximum(here, there) - np.minimum(here, there)
    sums = steps.reshape(height // 4, 4, width).sum(axis=1, dtype=np.uint16)
    return float((sums[:, 0::4] + sums[:, 1::4] + sums[:, 2::4] + sums[:, 3::4]).max()) / 16


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """(16, 64) rows 8 to 23 of the unnormalised type-II discrete cosine transform, as scipy scales it."""
    frequency = np.arange(_FIRST_FREQUENCY, _FIRST_FREQUENCY + _FREQUENCIES)[:, None]
    position = np.arange(GREY_SIDE)[None]
    return 2.0 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * GREY_SIDE))
