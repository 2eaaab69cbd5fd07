"""Which images of a set are the same picture: equal pixels, and near-duplicates that a second signal confirms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmdata.dedup.search import neighbours_within
from vlmdata.dedup.signatures import Signatures
from vlmdata.dedup.verification import verify_pairs

__all__ = ["ImageLinks", "first_equal", "link_images"]


@dataclass(frozen=True, slots=True)
class ImageLinks:
    """Pictures, and pairs of pictures that are nearly the same.

    Attributes:
        picture: (M,) int64, for each image the first image with equal pixels (itself, if there is none before it).
        pairs: (K, 2) int64, near-duplicates among those first images, smaller index first, ascending.
        distance: (K,) uint16, differing bits of the perceptual hashes of each pair.
    """

    picture: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    distance: npt.NDArray[np.uint16]

    def edges(self) -> npt.NDArray[np.int64]:
        """Every link as (L, 2) int64 indices of images: their connected components must not straddle splits."""
        copies = np.flatnonzero(self.picture != np.arange(len(self.picture)))
        return np.concatenate([np.stack([self.picture[copies], copies], axis=1), self.pairs])


def link_images(signatures: Signatures, near_distance: int | None) -> ImageLinks:
    """Find the images of a set that are the same picture.

    The result depends on the images alone, not on how they were divided among workers.

    Args:
        signatures: The set.
        near_distance: Most bits in which the perceptual hashes of near-duplicates differ; None for equal pixels only.
    """
    picture = first_equal(signatures.pixel_hash)
    if near_distance is None:
        return ImageLinks(picture, np.empty((0, 2), np.int64), np.empty(0, np.uint16))
    distinct = np.flatnonzero((picture == np.arange(len(picture))) & ~signatures.is_flat)
    found = neighbours_within(signatures.phash[distinct], near_distance)
    pairs = distinct[found.pairs]
    same = verify_pairs(signatures.thumbnail, pairs, found.distance)
    return ImageLinks(picture, pairs[same], found.distance[same])


def first_equal(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """For each row of (M, 16) bytes the index of the first equal row."""
    high, low = np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable: the first of equals stays first
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    first = np.empty(len(order), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first
