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
from vlmdata.images.chatter import decoder_session, one_line
from vlmdata.images.color import read_orientation, to_srgb
from vlmdata.images.containers import coded_picture, jpeg_size, scalable_mode, split_jpeg
from vlmdata.images.decoding import JPEG_START, open_image
from vlmdata.images.fingerprint import Fingerprint, fingerprint_apart, hash_code, read_grey, sharpest_step
from vlmdata.images.geometry import check_size, plan_layout
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
    """Read a JPEG file.

    Metadata are read in a `decoder_session`; the decoder of the picture itself says nothing.

    Returns:
        None where all of its pixels are needed: because it is no JPEG, because something has to be done to them,
        because the picture is too flat to be told by anything else, or to find out what is wrong with it.
    """
    try:
        return _read(data, config)
    # A refusal by the config or by a decoder, which hostile files make raise nearly anything: decoding in full ends in
    # the same way, and says why.
    except Exception:
        return None


def _read(data: bytes, config: ImageConfig) -> Unchanged | None:
    size = jpeg_size(data) if data.startswith(JPEG_START) else None
    if size is None or 0 in size or size[0] * size[1] > config.max_pixels:
        return None
    check_size(*size, config)
    layout = plan_layout(*size, config)
    if not layout.scaled == layout.stored == size:
        return None
    pieces = split_jpeg(data)
    mode = scalable_mode(pieces) if pieces is not None else None
    if pieces is None or mode is None:
        return None
    stripped = b"".join(pieces)
    note = _read_metadata(data, config, size) if stripped != data else ""
    if note is None:
        return None
    signals = _look(data, mode, size)
    if signals.is_flat:
        return None
    return Unchanged(
        data=data if stripped == data else stripped,
        size=size,
        pixel_hash=hash_code(coded_picture(pieces)),
        signals=signals,
        note=one_line(note, layout.note),
    )


def _read_metadata(data: bytes, config: ImageConfig, size: tuple[int, int]) -> str | None:
    """What is to be noted of a file's metadata; None where they say that pixels are to be moved or converted."""
    said: list[str] = []
    with decoder_session(said, max_pixels=config.max_pixels, salvage_truncated=False):
        image = open_image(data, config)
        if image.format != "JPEG" or image.size != size:
            return None
        orientation, note = read_orientation(image)
        pixel = Image.new(image.mode, (1, 1))
        converted, color_note = to_srgb(pixel, image.info.get("icc_profile"))
    if orientation != 1 or converted is not pixel:
        return None
    return one_line("; ".join(filter(None, (note, color_note))), *said)


def _look(data: bytes, mode: str, size: tuple[int, int]) -> Fingerprint:
    """Decode a file, to luma and chroma as it holds them, as small as its content allows."""
    scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(size) >= scale * _LEAST_SIDE)
    image = _decode(data, mode, size, scale)
    shown = size[0] / scale, size[1] / scale
    luma = read_grey(image)
    signals = fingerprint_apart(luma, shown, image, shown)
    if scale == 1 or signals.is_flat or sharpest_step(read_levels(luma)) <= _MAX_STEP * signals.strength:
        return signals
    return fingerprint_apart(_decode(data, "L", size, 1), size, image, shown)


def _decode(data: bytes, mode: str, size: tuple[int, int], scale: int) -> Image.Image:
    """The picture of a file in L or YCbCr, at one part in 1, 2, 4 or 8 of its size."""
    width, height = (-(-side // scale) for side in size)
    # Pillow's JPEG decoder without its reader of headers, which this module has read: raw mode, the file's own mode
    # where it is not to be told from the header, scale, and no short cuts.
    return Image.frombytes(mode, (width, height), data, "jpeg", mode, "", scale, 0)
