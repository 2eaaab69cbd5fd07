"""Exceptions of decoders to reasons: what a person should know of a file that gives no picture."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from vlmdata.images.outcome import ImageError

__all__ = ["explain"]

# Pillow and the libraries below it have no types for these, only words.
_TRUNCATED_WORDS = ("truncated", "not enough image data", "unexpected end", "end of file")
_UNSUPPORTED_WORDS = (
    "cannot find loader",
    "unsupported",
    "unimplemented",
    "unable to locate",
    "unknown compression",
    "not supported",
    "not configured",
)
_BOMB_WORDS = ("decompressed data too large",)
_BOMB_PIXELS = re.compile(r"\((\d+) pixels\)")

# What files with an image's name turn out to be; Pillow has no decoder for any of them.
_OTHER_KINDS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb".{4}ftyp(?:hei|hev|mif|msf)", re.DOTALL), "HEIF; convert it beforehand"),
    (re.compile(rb"%PDF-"), "a PDF document; render its pages beforehand"),
    (
        re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg", re.DOTALL),
        "SVG; render it",
    ),
    (re.compile(rb"\s*<(?:!doctype\s+html|html)", re.IGNORECASE), "a web page, not an image"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; fetch the file itself with git lfs pull"),
)


def explain(error: Exception, data: bytes, said: Sequence[str], max_pixels: int) -> tuple[str, str]:
    """The reason, a short stable word, and a line of detail, for what was raised while a file was decoded.

    Args:
        error: What was raised.
        data: The file.
        said: What decoders said meanwhile.
        max_pixels: The limit that was in force.
    """
    if isinstance(error, ImageError):
        return error.reason, error.detail
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    words = " ".join([str(error), *said]).lower()
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        found = _BOMB_PIXELS.search(str(error))
        return "image_bomb", f"{found[1]} pixels, more than max_pixels {max_pixels}" if found else message
    if isinstance(error, MemoryError):
        return "image_bomb", "decoding it takes more memory than there is"
    if any(word in words for word in _BOMB_WORDS):
        return "image_bomb", message
    if isinstance(error, UnidentifiedImageError):
        return _explain_unidentified(data)
    if isinstance(error, NotImplementedError) or any(word in words for word in _UNSUPPORTED_WORDS):
        return "image_unsupported", message
    if isinstance(error, EOFError | struct.error) or any(word in str(error).lower() for word in _TRUNCATED_WORDS):
        return "image_truncated", message
    return "image_unreadable", message


def _explain_unidentified(data: bytes) -> tuple[str, str]:
    for pattern, kind in _OTHER_KINDS:
        if pattern.match(data, 0, 1024):
            return "image_unsupported", kind
    return "image_unreadable", f"no format that Pillow knows; starts with {data[:16]!r}"
