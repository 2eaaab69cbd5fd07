"""From bytes to an upright 8-bit sRGB picture of the wanted size, in one decode and no more work than that needs."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from vlmdata.config import ImageConfig
from vlmdata.images.color import orient, read_orientation, to_plain_mode, to_srgb
from vlmdata.images.containers import is_8bit_png, is_lossy
from vlmdata.images.frames import check_pages, frame_used
from vlmdata.images.geometry import Layout, check_size, plan_layout
from vlmdata.images.outcome import ImageError
from vlmdata.images.vips import MOST_REDUCTION, reduce_picture

__all__ = ["JPEG_START", "Decoded", "decode", "open_image"]

JPEG_START = b"\xff\xd8\xff"

_SIDEWAYS = (5, 6, 7, 8)
_JPEG_FORMATS = ("JPEG", "MPO")
_STORABLE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
# Pillow hands EPS to Ghostscript, an interpreter: what it makes of a file depends on the machine, and may do harm.
_REFUSED_FORMATS = {"EPS": "PostScript is a program, not a picture; render it beforehand"}
# A JPEG is decoded at a fraction of its size, but at least at this many times the wanted one. At this gap the
# structural similarity to an exact LANCZOS resize stays above 0.99 on noisy pages (benchmarks/build_speed.py).
_DRAFT_GAP = 1.2
# Pictures that only Pillow can resample are first reduced by whole steps to this many times the wanted size.
_REDUCING_GAP = 3.0


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded picture.

    Attributes:
        picture: RGB or L, upright, of size `layout.scaled`.
        layout: where it goes in the stored image.
        original: (width, height) in px of the file's picture, upright.
        file_format: Pillow's name of the file's format.
        is_as_filed: whether `picture` is exactly what the file holds, so that the file can be stored instead.
        lossy_source: whether the file had lost detail when it was written.
        window: see `PreparedImage`.
        frame: see `PreparedImage`.
        note: what else happened, empty if nothing did.
    """

    picture: Image.Image
    layout: Layout
    original: tuple[int, int]
    file_format: str
    is_as_filed: bool
    lossy_source: bool
    window: str | None
    frame: int | None
    note: str


def decode(data: bytes, config: ImageConfig, page: int | None = None) -> Decoded:
    """Decode a file, or one page of it, through a `decoder_session`.

    Args:
        data: The encoded file.
        config: Bounds, sizes and policies.
        page: Frame number of the page that is wanted, where the file has several and all are.

    Raises:
        ImageError: The config refuses the picture.
        Exception: Whatever Pillow and the libraries below it raise on a bad file.
    """
    image = open_image(data, config, page)
    file_format = image.format or ""
    orientation, note = (1, "")
    if file_format in _JPEG_FORMATS:
        # A JPEG is not decoded yet: the size that is wanted decides at which scale it will be.
        orientation, note = read_orientation(image)
    else:
        image.load()
        if 0 in image.size:
            raise ImageError("image_unreadable", f"{image.width}x{image.height} px")
        check_size(*image.size, config)
        if file_format != "TIFF":  # which Pillow has turned upright by now
            orientation, note = read_orientation(image)
    sideways = orientation in _SIDEWAYS
    original = image.size[::-1] if sideways else image.size
    layout = plan_layout(*original, config)
    frame = page if page is not None else frame_used(image)
    plain, window = _resample(image, layout.scaled[::-1] if sideways else layout.scaled, config)
    canonical, color_note = to_srgb(plain, None if image.mode == "LAB" else image.info.get("icc_profile"))
    return Decoded(
        picture=orient(canonical, orientation),
        layout=layout,
        original=original,
        file_format=file_format,
        # Every step hands back the very image it was given where it had nothing to do.
        is_as_filed=canonical is image and orientation == 1 and _is_storable(data, file_format),
        lossy_source=is_lossy(data, file_format, image.info.get("compression")),
        window=window,
        frame=frame,
        note="; ".join(filter(None, (note, color_note, layout.note))),
    )


def open_image(data: bytes, config: ImageConfig, page: int | None = None) -> Image.Image:
    """Read the header of a file, through a `decoder_session`, and seek one of its pages where one is wanted.

    Raises:
        ImageError: The config refuses the format, the size or the number of pages.
        Exception: Whatever Pillow raises on a bad file.
    """
    image = _identify(data)
    if image.format in _REFUSED_FORMATS:
        raise ImageError("image_unsupported", f"{image.format}: {_REFUSED_FORMATS[image.format]}")
    if page is not None:
        image.seek(page)
    check_size(*image.size, config)
    if page is None:
        check_pages(image, config)
    return image


def _identify(data: bytes) -> Image.Image:
    if data.startswith(JPEG_START):
        # spares the formats without a signature, each of which would try to read the file first
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(io.BytesIO(data), formats=("JPEG",))
    return Image.open(io.BytesIO(data))


def _is_storable(data: bytes, file_format: str) -> bool:
    # Pillow shows a 16-bit colour PNG in 8 bits, so that only the header tells.
    return file_format in _STORABLE_FORMATS and (file_format != "PNG" or is_8bit_png(data))


def _resample(image: Image.Image, size: tuple[int, int], config: ImageConfig) -> tuple[Image.Image, str | None]:
    """The image in a plain mode at `size` (width, height in px), and its window of values."""
    drafted = None
    if size[0] < image.width and image.format in _JPEG_FORMATS:
        # The decoder itself halves a JPEG up to three times, by leaving out what the smaller picture does not need.
        drafted = image.draft(None, (round(size[0] * _DRAFT_GAP), round(size[1] * _DRAFT_GAP)))
    image.load()
    plain, window = to_plain_mode(image, config)
    if plain.size == size:
        return plain, window
    extent = drafted[1][2:] if drafted else plain.size
    return _resize(plain, size, extent), window


def _resize(image: Image.Image, size: tuple[int, int], extent: tuple[float, float]) -> Image.Image:
    """Bring the part of an image from its upper left corner to `extent` to another size."""
    ratios = [before / after for before, after in zip(extent, size, strict=True)]
    if min(ratios) >= 1.0 and max(ratios) <= MOST_REDUCTION:
        reduced = reduce_picture(image, size, extent)
        if reduced is not None:
            return reduced
    return image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, *extent), reducing_gap=_REDUCING_GAP)
