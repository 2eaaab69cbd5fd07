"""What becomes of an image file: a picture ready to store, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ImageError", "ImageProblem", "PreparedImage"]


@dataclass(slots=True)
class PreparedImage:
    """An image as it will be stored, with what deduplication and the report need to know of it.

    Attributes:
        data: the encoded picture: 8-bit RGB or grey, upright, sRGB.
        format: of `data`.
        width: of the stored picture in px.
        height: of the stored picture in px.
        original_width: as a viewer shows the file (after EXIF orientation), in px.
        original_height: likewise.
        action: `stored` byte for byte, `stripped` of metadata losslessly, `resized`, or `reencoded` at the same size.
        content_box: (left, top, width, height) in px of the whole original picture within the stored one; reaches
            outside it after a crop.
        window: `LOW:HIGH`, the values that became black and white where the source was deeper than 8 bits.
        frame: 0 where the first of several frames was taken, the number of the page's frame where all pages were, None
            for a still picture.
        salvaged: whether the file ended too early and what there was is kept.
        note: what else happened (warnings, chatter of the C libraries, an unusable colour profile), empty if nothing.
        pixel_hash: 128-bit hash, 32 hexadecimal digits, equal only where the stored pixels are: of the code of a JPEG
            that `images.unchanged` keeps as it is; else of the pixels before encoding and of their size.
        phash: 256-bit perceptual hash, 32 bytes.
        thumbnail: small grey copy, one byte a pixel, that verifies what the hash suggests.
        is_flat: whether the picture has too little content for its perceptual hash to mean much.
    """

    data: bytes = field(repr=False)
    format: Literal["JPEG", "PNG", "WEBP"]
    width: int
    height: int
    original_width: int
    original_height: int
    action: Literal["stored", "stripped", "resized", "reencoded"]
    content_box: tuple[int, int, int, int]
    window: str | None
    frame: int | None
    salvaged: bool
    note: str
    pixel_hash: str
    phash: bytes
    thumbnail: bytes = field(repr=False)
    is_flat: bool


@dataclass(slots=True)
class ImageProblem:
    """Why a file gives no picture: a short stable word, and one line for a person."""

    reason: str
    detail: str


class ImageError(Exception):
    """Ends the preparation of one image; never leaves `prepare_image`, which turns it into an `ImageProblem`."""

    def __init__(self, reason: str, detail: str) -> None:
        """Carry the two fields of the `ImageProblem` to come."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
