"""Exceptions of decoders to reasons: what a person should know of a file that gives no picture."""

from __future__ import annotations

import struct

from PIL import Image, UnidentifiedImageError

from vlmdata.images.outcome import ImageError

__all__ = ["explain"]

# Pillow and the libraries below it have no types for these, only words.
_TRUNCATED_WORDS = ("truncated", "not enough image data", "unexpected end", "end of file", "eof")
_UNSUPPORTED_WORDS = ("cannot find loader", "unsupported", "unable to locate", "unknown compression", "not supported")


def explain(error: Exception, data: bytes) -> tuple[str, str]:
    """The reason, a short stable word, and a line of detail, for what was raised while `data` was decoded."""
    if isinstance(error, ImageError):
        return error.reason, error.detail
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "image_bomb", str(error)
    if isinstance(error, MemoryError):
        return "image_bomb", "decoding it takes more memory than there is"
    if isinstance(error, UnidentifiedImageError):
        return "image_unreadable", f"no format that Pillow knows; starts with {data[:16]!r}"
    words = str(error).lower()
    if isinstance(error, NotImplementedError) or any(word in words for word in _UNSUPPORTED_WORDS):
        return "image_unsupported", message
    if isinstance(error, EOFError | struct.error) or any(word in words for word in _TRUNCATED_WORDS):
        return "image_truncated", message
    return "image_unreadable", message
