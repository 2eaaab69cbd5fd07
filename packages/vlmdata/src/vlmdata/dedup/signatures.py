"""What deduplication knows of a set: columns of numbers, never pixels."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TEXT_HASH_BYTES", "Signatures", "hash_texts", "normalize_text"]

TEXT_HASH_BYTES = 16


@dataclass(kw_only=True, slots=True)
class Signatures:
    """The rows of a set and the images they show, R rows, M images and F references from rows to images.

    Rows are in the order of the input, which is the last word on which of two equals is kept. An image that several
    rows show may stand here once or several times.

    Attributes:
        row_offsets: (R + 1,) int64; row r shows the images `row_images[row_offsets[r] : row_offsets[r + 1]]`, in order.
        row_images: (F,) int64, indices of images.
        text_hash: (R, 16) uint8, of all that a row says (see `hash_texts`).
        text_length: (R,) int64, in characters; of two duplicates the richer text is kept.
        is_protected: (R,) bool, rows of a split that is to stay as it is, kept before all others.
        pixel_hash: (M, 16) uint8, `PreparedImage.pixel_hash`.
        phash: (M, 32) uint8, `PreparedImage.phash`.
        thumbnail: (M, T) uint8, `PreparedImage.thumbnail`; may be memory-mapped, it is read for candidates only.
        is_flat: (M,) bool, images that only equal `pixel_hash`es make duplicates.
        is_salvaged: (M,) bool, images that did not decode to their end.
        original_pixels: (M,) int64, width times height of the original.
    """

    row_offsets: npt.NDArray[np.int64]
    row_images: npt.NDArray[np.int64]
    text_hash: npt.NDArray[np.uint8]
    text_length: npt.NDArray[np.int64]
    is_protected: npt.NDArray[np.bool_]
    pixel_hash: npt.NDArray[np.uint8]
    phash: npt.NDArray[np.uint8]
    thumbnail: npt.NDArray[np.uint8]
    is_flat: npt.NDArray[np.bool_]
    is_salvaged: npt.NDArray[np.bool_]
    original_pixels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that the columns agree in length.

        Raises:
            ValueError: They do not.
        """
        rows, images = len(self.text_hash), len(self.pixel_hash)
        for names, length in (
            (("text_length", "is_protected"), rows),
            (("phash", "thumbnail", "is_flat", "is_salvaged", "original_pixels"), images),
        ):
            for name in names:
                if len(getattr(self, name)) != length:
                    raise ValueError(f"{name} has {len(getattr(self, name))} entries, not {length}")
        if len(self.row_offsets) != rows + 1 or int(self.row_offsets[-1]) != len(self.row_images):
            raise ValueError(f"row_offsets do not divide {len(self.row_images)} references among {rows} rows")

    @classmethod
    def concatenate(cls, parts: Sequence[Signatures]) -> Signatures:
        """The signatures of several parts of a set, in their order, as one."""
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__slots__
            if name not in ("row_offsets", "row_images")
        }
        references = np.cumsum([0, *(len(part.row_images) for part in parts)])
        images = np.cumsum([0, *(len(part.pixel_hash) for part in parts)])
        offsets = [part.row_offsets[1:] + shift for part, shift in zip(parts, references, strict=False)]
        return cls(
            row_offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
            row_images=np.concatenate([part.row_images + shift for part, shift in zip(parts, images, strict=False)]),
            **columns,
        )


def normalize_text(text: str) -> str:
    r"""Text as it is compared: NFC, and every run of white space one space; `\Delta` and `\delta` stay different."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def hash_texts(texts: Iterable[str]) -> bytes:
    """A 128-bit hash of a conversation's texts in order (roles and image places included by the caller), normalised."""
    pieces = []
    for text in texts:
        encoded = normalize_text(text).encode("utf-8", "surrogatepass")
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        pieces += [len(encoded).to_bytes(8, "little"), encoded]
    return hashlib.blake2b(b"".join(pieces), digest_size=TEXT_HASH_BYTES).digest()
