"""What identifies a picture: a hash of its pixels, a perceptual hash, and a small grey copy.

The perceptual hash is the 256-bit pHash of the `imagehash` library (Buchner; after Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010): the signs, against their median, of the 16x16 lowest
frequencies of a 64x64 grey copy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

__all__ = ["HASH_SIDE", "PHASH_BYTES", "THUMBNAIL_SIDE", "Fingerprint", "fingerprint", "hash_pixels", "perceptual_hash"]

PHASH_BYTES = 32
THUMBNAIL_SIDE = 32
HASH_SIDE = 64
_FREQUENCIES = 16
# Grey copies whose values stay this close together have nothing for a perceptual hash to hold on to.
_FLAT_STANDARD_DEVIATION = 4.0


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """See `PreparedImage` for the fields."""

    phash: bytes
    thumbnail: bytes
    is_flat: bool


def hash_pixels(image: Image.Image) -> str:
    """XXH3-128 of the size and the RGB pixels of an image; a grey picture hashes alike in mode L and RGB."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = xxhash.xxh3_128(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def fingerprint(image: Image.Image) -> Fingerprint:
    """The signals for near-duplicates of an RGB or L image."""
    grey = image if image.mode == "L" else image.convert("L")
    # Shrinking by whole steps first costs little accuracy (reducing_gap) and saves most of the time.
    small = grey.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    levels = np.asarray(small)
    thumbnail = small.reduce(HASH_SIDE // THUMBNAIL_SIDE).tobytes()
    return Fingerprint(perceptual_hash(levels), thumbnail, bool(levels.std() < _FLAT_STANDARD_DEVIATION))


def perceptual_hash(levels: npt.NDArray[np.uint8]) -> bytes:
    """The 256-bit pHash of a (64, 64) grey copy, bits in the order of `imagehash.phash(hash_size=16)`."""
    basis = _cosines()
    low = basis @ levels.astype(np.float64) @ basis.T
    return np.packbits(low > np.median(low)).tobytes()


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """The (16, 64) lowest rows of the unnormalised type-II discrete cosine transform, as scipy scales it."""
    frequency = np.arange(_FREQUENCIES)[:, None]
    position = np.arange(HASH_SIDE)[None]
    return 2.0 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * HASH_SIDE))
