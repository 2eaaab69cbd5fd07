"""Encoded files seen as bytes: what a container holds, and its metadata cut away without touching a pixel.

Each `strip_*` returns the file with only what its pixels need, the very same object where there was nothing to cut, or
None where the file does not parse in one plain walk (a tolerant decoder may still have read it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

__all__ = [
    "coded_picture",
    "is_8bit_png",
    "is_lossy",
    "jpeg_size",
    "scalable_mode",
    "split_jpeg",
    "strip_jpeg",
    "strip_metadata",
    "strip_png",
    "strip_webp",
]

_JPEG_START_OF_IMAGE = b"\xff\xd8"
_JPEG_END_OF_IMAGE = b"\xff\xd9"
_JPEG_START_OF_SCAN = 0xDA
_JPEG_COMMENT = 0xFE
_JFIF, _ADOBE = 0xE0, 0xEE
# SOF markers but DHT, JPG and DAC, which stand between them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_DCT_FRAMES = (0xC0, 0xC1, 0xC2)
# Of the first component, across and down in one byte, where the others have one sample each: 4:4:4, 4:2:2 and 4:2:0.
_USUAL_SAMPLINGS = (b"\x11", b"\x21", b"\x22")
# In entropy-coded data FF is followed by 00 (a literal FF), a restart marker D0-D7 or fill bytes FF.
_JPEG_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF")


def is_lossy(data: bytes, image_format: str, compression: str | None = None) -> bool:
    """Whether a file of Pillow's `image_format` lost detail when it was written (an animated WebP counts as lossy).

    Args:
        data: The encoded file.
        image_format: As Pillow names it.
        compression: Pillow's `info["compression"]` of a TIFF.
    """
    if image_format == "WEBP":
        return (_webp_picture(data) or b"")[:4] != b"VP8L"
    return image_format in _LOSSY_FORMATS or (image_format == "TIFF" and compression == "jpeg")


def strip_metadata(data: bytes, image_format: str) -> bytes | None:
    """`data` without metadata, by the container of the file; None where it must be encoded anew."""
    if image_format in ("JPEG", "MPO"):
        return strip_jpeg(data)
    return {"PNG": strip_png, "WEBP": strip_webp}[image_format](data)


def strip_jpeg(data: bytes) -> bytes | None:
    """A JPEG file without EXIF, XMP, profiles, comments, previews and anything after its end.

    JFIF (APP0) and Adobe (APP14) segments stay: decoders choose the colour space by them.
    """
    pieces = split_jpeg(data)
    stripped = b"".join(pieces) if pieces is not None else None
    return data if stripped == data else stripped


def split_jpeg(data: bytes) -> list[bytes] | None:
    """The pieces of a JPEG file that `strip_jpeg` leaves: its start, segments (scans with their data), and its end."""
    if not data.startswith(_JPEG_START_OF_IMAGE):
        return None
    kept = [_JPEG_START_OF_IMAGE]
    for marker, segment in _walk_jpeg(data):
        if marker is None:
            return None
        if _is_needed_by_pixels(marker, segment):
            kept.append(_without_jfif_preview(segment) if marker == _JFIF else segment)
    kept.append(_JPEG_END_OF_IMAGE)
    return kept


def _walk_jpeg(data: bytes) -> Iterator[tuple[int | None, bytes]]:
    """Yield the marker and the bytes of each segment up to the end of the image; None where it is not found."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == _JPEG_END_OF_IMAGE[1]:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end > len(data):
            break
        if marker == _JPEG_START_OF_SCAN:
            found = _JPEG_MARKER_AFTER_SCAN.search(data, end)
            if found is None:
                break
            end = found.start()
        yield marker, data[position:end]
        position = end
    if data[position : position + 2] != _JPEG_END_OF_IMAGE:
        yield None, b""


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in px by the header of a JPEG file, None where that is not to be found."""
    for marker, segment in _walk_jpeg(data):
        if marker in _JPEG_FRAMES and len(segment) >= 9:
            return int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
        if marker is None or marker == _JPEG_START_OF_SCAN:
            break
    return None


def coded_picture(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what the pixels depend on: of a JFIF header only that it is there, and not the resolution in it."""
    for piece in pieces:
        yield piece[:2] if piece[1] == _JFIF else piece


def scalable_mode(pieces: Sequence[bytes]) -> Literal["L", "YCbCr"] | None:
    """What a JPEG file holds, where a decoder reads it at a fraction of its size as it does at full size, errors too.

    That takes one grey component, or luma and two of chroma, of 8 bits, Huffman-coded, with one of the usual samplings:
    others are refused, or decoded in another way, at one of the sizes only.
    """
    frames = [piece for piece in pieces if piece[1] in _JPEG_FRAMES]
    if len(frames) != 1 or frames[0][1] not in _HUFFMAN_DCT_FRAMES or len(frames[0]) < 13 or frames[0][4] != 8:
        return None
    names, samplings = frames[0][10::3], frames[0][11::3]
    if frames[0][9] == 1:
        return "L" if len(samplings) == 1 else None
    has_chroma = names == b"\1\2\3" and not any(piece[1] == _ADOBE and piece[-1:] == b"\0" for piece in pieces)
    usual = samplings[:1] in _USUAL_SAMPLINGS and samplings[1:] == b"\x11\x11"
    return "YCbCr" if has_chroma and usual else None


def _is_needed_by_pixels(marker: int, segment: bytes) -> bool:
    if marker == _JFIF:
        return segment[4:9] == b"JFIF\x00"
    if marker == _ADOBE:
        return segment[4:9] == b"Adobe"
    return marker != _JPEG_COMMENT and not 0xE0 <= marker <= 0xEF


def _without_jfif_preview(segment: bytes) -> bytes:
    """The 16 bytes of a JFIF header, saying that no preview follows."""
    return segment if len(segment) <= 18 else segment[:2] + b"\x00\x10" + segment[4:16] + b"\x00\x00"


def is_8bit_png(data: bytes) -> bool:
    """Whether a PNG holds 8-bit RGB or 8-bit grey samples, by its header."""
    return data.startswith(_PNG_SIGNATURE) and data[12:16] == b"IHDR" and data[24] == 8 and data[25] in (0, 2)


def strip_png(data: bytes) -> bytes | None:
    """A PNG file of its header and its picture data alone; an animated one becomes its still image."""
    if not data.startswith(_PNG_SIGNATURE):
        return None
    kept = [_PNG_SIGNATURE]
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if end > len(data):
            return None
        if kind == b"IEND":
            kept.append(_PNG_END)
            stripped = b"".join(kept)
            return data if stripped == data else stripped
        if kind in (b"IHDR", b"IDAT"):
            kept.append(data[position:end])
        position = end
    return None


def strip_webp(data: bytes) -> bytes | None:
    """A still WebP file without alpha, of its picture chunk alone."""
    picture = _webp_picture(data)
    if picture is None:
        return None
    stripped = b"RIFF" + (len(picture) + 4).to_bytes(4, "little") + b"WEBP" + picture
    return data if stripped == data else stripped


def _webp_picture(data: bytes) -> bytes | None:
    """The first `VP8 ` or `VP8L` chunk of a file, with its header and padding."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + size + size % 2
        if data[position : position + 4] in (b"VP8 ", b"VP8L"):
            chunk = data[position:end]
            return chunk if len(chunk) == end - position else None
        position = end
    return None
