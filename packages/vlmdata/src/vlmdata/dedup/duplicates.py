"""Which rows to drop: stars of duplicates, each around the row that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vlmdata.config import DedupConfig
from vlmdata.dedup.links import ImageLinks, link_images
from vlmdata.dedup.signatures import Signatures

__all__ = ["Duplicates", "find_duplicates"]

Reason = Literal["duplicate_exact", "duplicate_near"]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows to drop, ascending; D of them.

    Attributes:
        row: (D,) int64.
        kept: (D,) int64, the row that each is a duplicate of; it is never itself dropped.
        is_near: (D,) bool, False where all pixels are equal.
        distance: (D,) uint16, differing bits of the perceptual hashes, of the most different pair of images.
    """

    row: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    is_near: npt.NDArray[np.bool_]
    distance: npt.NDArray[np.uint16]

    def __iter__(self) -> Iterator[tuple[int, int, Reason, int]]:
        """Row, kept row, reason and distance of each."""
        for row, kept, is_near, distance in zip(
            self.row.tolist(), self.kept.tolist(), self.is_near.tolist(), self.distance.tolist(), strict=True
        ):
            yield row, kept, "duplicate_near" if is_near else "duplicate_exact", distance

    def __len__(self) -> int:
        """How many rows are to be dropped."""
        return len(self.row)


def find_duplicates(signatures: Signatures, config: DedupConfig, links: ImageLinks | None = None) -> Duplicates:
    """Find the rows to drop.

    Rows are duplicates if they show the same pictures in the same order and, in scope `pair`, say the same. Of a group
    the best row is kept: of a protected split, then decoded to its end, then of most original pixels, then of most
    text, then the first. A row is dropped only for a kept row that it is a duplicate of itself: never through a chain.

    Args:
        signatures: The set.
        config: What counts as a duplicate. Rows without images are duplicates by text, in scope `pair` only.
        links: From `link_images` with the config's distance, where they are at hand.
    """
    if config.dedup == "none":
        return _from_columns([])
    if links is None:
        links = link_images(signatures, config.near_distance if config.dedup == "near" else None)
    rank = _keep_rank(signatures)
    representative = _first_of_equals(signatures, links, config, rank)
    near: dict[int, tuple[int, int]] = {}
    if config.dedup == "near" and len(links.pairs):
        near = _near_stars(signatures, links, config, rank, representative)
    drops = [(row, kept, distance, True) for row, (kept, distance) in near.items()]
    for row in np.flatnonzero(representative != np.arange(len(representative))).tolist():
        # Where the row that stands for its equals is itself dropped, they are all near the same kept row.
        first = int(representative[row])
        drops.append((row, *near.get(first, (first, 0)), first in near))
    return _from_columns(sorted(drops))


def _from_columns(drops: list[tuple[int, int, int, bool]]) -> Duplicates:
    columns = list(zip(*drops, strict=True)) or [(), (), (), ()]
    return Duplicates(
        row=np.array(columns[0], np.int64),
        kept=np.array(columns[1], np.int64),
        distance=np.array(columns[2], np.uint16),
        is_near=np.array(columns[3], np.bool_),
    )


def _keep_rank(signatures: Signatures) -> npt.NDArray[np.int64]:
    """(R,) the place of each row in the order in which rows are preferred, 0 the best."""
    counts = np.diff(signatures.row_offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    pixels = np.bincount(owner, signatures.original_pixels[signatures.row_images], minlength=len(counts))
    salvaged = np.bincount(owner, signatures.is_salvaged[signatures.row_images], minlength=len(counts))
    order = np.lexsort((-signatures.text_length, -pixels, salvaged, ~signatures.is_protected))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _first_of_equals(
    signatures: Signatures, links: ImageLinks, config: DedupConfig, rank: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(R,) for each row the best row with equal pixels in every image (and equal text)."""
    representative = np.arange(len(rank))
    counts = np.diff(signatures.row_offsets)
    text = np.ascontiguousarray(signatures.text_hash).view(np.uint64)
    for count in np.unique(counts).tolist():
        if count == 0 and config.dedup_scope == "image":
            continue
        rows = np.flatnonzero(counts == count)
        images = signatures.row_offsets[rows, None] + np.arange(count)
        keys = list(links.picture[signatures.row_images[images]].T)
        if config.dedup_scope == "pair":
            keys += list(text[rows].T)
        order = np.lexsort((rank[rows], *keys))
        changes = np.zeros(len(rows), np.bool_)
        changes[:1] = True
        for key in keys:
            changes[1:] |= key[order][1:] != key[order][:-1]
        group = np.cumsum(changes) - 1
        representative[rows[order]] = rows[order][np.flatnonzero(changes)][group]
    return representative


def _near_stars(
    signatures: Signatures,
    links: ImageLinks,
    config: DedupConfig,
    rank: npt.NDArray[np.int64],
    representative: npt.NDArray[np.int64],
) -> dict[int, tuple[int, int]]:
    """For each row that is near a better one that is kept: that row, and the distance.

    Only rows that stand for their equals take part, best first, each against the rows kept so far.
    """
    distances = _distance_table(links)
    neighbours: dict[int, list[int]] = {}
    for first, second in distances:
        neighbours.setdefault(first, []).append(second)
    shown = links.picture[signatures.row_images]
    owner = np.repeat(np.arange(len(rank)), np.diff(signatures.row_offsets))
    linked = np.zeros(len(links.picture), np.bool_)
    linked[links.pairs] = True
    rows = np.unique(owner[linked[shown]])
    rows = rows[representative[rows] == rows]
    kept_by_picture: dict[tuple[bytes, int, int], list[int]] = {}
    dropped: dict[int, tuple[int, int]] = {}
    for row in rows[np.argsort(rank[rows])].tolist():
        pictures = _pictures_of(signatures, shown, row)
        text = signatures.text_hash[row].tobytes() if config.dedup_scope == "pair" else b""
        best: tuple[int, int, int] | None = None
        for picture in (pictures[0], *neighbours.get(pictures[0], ())):
            for other in kept_by_picture.get((text, len(pictures), picture), ()):
                distance = _row_distance(pictures, _pictures_of(signatures, shown, other), distances)
                if distance is not None:
                    candidate = (distance, int(rank[other]), other)
                    best = candidate if best is None else min(best, candidate)
        if best is None:
            kept_by_picture.setdefault((text, len(pictures), pictures[0]), []).append(row)
        else:
            dropped[row] = (best[2], best[0])
    return dropped


def _distance_table(links: ImageLinks) -> dict[tuple[int, int], int]:
    """The distance of each pair of linked pictures, both ways round."""
    table: dict[tuple[int, int], int] = {}
    for (first, second), distance in zip(links.pairs.tolist(), links.distance.tolist(), strict=True):
        table[first, second] = table[second, first] = distance
    return table


def _pictures_of(signatures: Signatures, shown: npt.NDArray[np.int64], row: int) -> list[int]:
    start, stop = signatures.row_offsets[row : row + 2].tolist()
    return [int(picture) for picture in shown[start:stop]]


def _row_distance(first: list[int], second: list[int], distances: dict[tuple[int, int], int]) -> int | None:
    """The largest distance between the images of two rows in turn, None where one of them is another picture."""
    largest = 0
    for a, b in zip(first, second, strict=True):
        distance = 0 if a == b else distances.get((a, b))
        if distance is None:
            return None
        largest = max(largest, distance)
    return largest
