"""JPEG files that a build stores as they are: nothing but their code is kept, so that they need not be decoded in full.

The decoder reads all of the code whatever the scale, and so finds what is wrong with it; at a fraction of the size it
spares most of the inverse transform and the interpolation of colours. What fingerprints see of such a small picture
differs a little from what they see of the whole one, more where it is full of fine detail: the grey levels of such
pictures are decoded once more, at full size (benchmarks/near_duplicates.py has both kinds).
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from vlmdata.config import ImageConfig
from vlmdata.images.color import read_orientation, to_srgb
from vlmdata.images.containers import coded_picture, scales_exactly, split_jpeg
from vlmdata.images.decoding import JPEG_START, open_image
from vlmdata.images.fingerprint import Fingerprint, fingerprint_apart, hash_code, read_grey, sharpest_step
from vlmdata.images.geometry import plan_layout
from vlmdata.images.pixels import read_levels

__all__ = ["Unchanged", "read_unchanged"]

# One and a half times the side of the small copy that fingerprints are made from.
_LEAST_SIDE = 96
# Of the hash's coefficients, the sharpest step in the small picture; above it, folded detail moves too many bits.
_MAX_STEP = 0.026


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A JPEG file to be stored as it is.

    Attributes:
        data: the file without metadata.
        size: (width, height) in px.
        pixel_hash: of its code.
        signals: for near-duplicates.
        note: what else happened, empty if nothing did.
    """

    data: bytes
    size: tuple[int, int]
    pixel_hash: str
    signals: Fingerprint
    note: str


def read_unchanged(data: bytes, config: ImageConfig) -> Unchanged | None:
    """Read a JPEG file through a `decoder_session`.

    Returns:
        None where all of its pixels are needed: because it is no JPEG, because something has to be done to them, or
        because the picture is too flat to be told by anything else.

    Raises:
        ImageError: The config refuses the picture.
        Exception: Whatever Pillow and the libraries below it raise on a bad file, as decoding in full would.
    """
    if not data.startswith(JPEG_START):
        return None
    image = open_image(data, config)
    size = image.size
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or 0 in size:
        return None
    orientation, note = read_orientation(image)
    if orientation != 1:
        return None
    layout = plan_layout(*size, config)
    if not layout.scaled == layout.stored == size:
        return None
    color_note = ""
    if profile := image.info.get("icc_profile"):
        pixel = Image.new(image.mode, (1, 1))
        converted, color_note = to_srgb(pixel, profile)
        if converted is not pixel:
            return None
    pieces = split_jpeg(data)
    if pieces is None or not scales_exactly(pieces):
        return None
    signals = _look(data, image, config)
    if signals.is_flat:
        return None
    stripped = b"".join(pieces)
    return Unchanged(
        data=data if stripped == data else stripped,
        size=size,
        pixel_hash=hash_code(coded_picture(pieces)),
        signals=signals,
        note="; ".join(filter(None, (note, color_note, layout.note))),
    )


def _look(data: bytes, image: Image.Image, config: ImageConfig) -> Fingerprint:
    """Decode a file, opened as `image`, as small as its content allows."""
    width, height = image.size
    scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(width, height) >= scale * _LEAST_SIDE)
    # Luma and chroma are what the file holds, and what fingerprints are made of.
    image.draft("YCbCr", (width // scale, height // scale))
    image.load()
    image.info = {}
    shown = width / scale, height / scale
    luma = read_grey(image)
    signals = fingerprint_apart(luma, shown, image, shown)
    if scale == 1 or signals.is_flat or sharpest_step(read_levels(luma)) <= _MAX_STEP * signals.strength:
        return signals
    grey = open_image(data, config)
    grey.draft("L", (width, height))
    grey.load()
    return fingerprint_apart(grey, (width, height), image, shown)
