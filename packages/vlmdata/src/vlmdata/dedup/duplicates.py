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


def find_duplicates(
    signatures: Signatures,
    config: DedupConfig,
    links: ImageLinks | None = None,
    *,
    is_candidate: npt.NDArray[np.bool_] | None = None,
) -> Duplicates:
    """Find the rows to drop.

    Rows are duplicates if they show the same pictures in the same order and, in scope `pair`, say the same. Of a group
    the best row is kept: of a protected split, then decoded to its end, then of most original pixels, then of most
    text, then the first. A row is dropped only for a kept row that it is a duplicate of itself: never through a chain.

    Args:
        signatures: The set.
        config: What counts as a duplicate. Rows without images are duplicates by text, in scope `pair` only.
        links: From `link_images` with the config's distance, where they are at hand.
        is_candidate: (R,) bool, rows that take part; others (dropped for another reason) are neither dropped nor kept
            for any. All, by default.
    """
    rows = np.arange(len(signatures.text_hash))
    if config.dedup == "none":
        return _duplicates(rows, rows, rows)
    if links is None:
        links = link_images(signatures, config.near_distance if config.dedup == "near" else None)
    if is_candidate is None:
        is_candidate = np.ones(len(rows), np.bool_)
    rank = _keep_rank(signatures)
    representative = _first_of_equals(signatures, links, config, rank, is_candidate)
    star, distance = rows.copy(), np.zeros(len(rows), np.int64)
    if config.dedup == "near" and len(links.pairs):
        standing = is_candidate & (representative == rows)
        _gather_stars(signatures, links, config, rank, standing, star, distance)
    # Where the row that stands for its equals is itself dropped, they are all near the same kept row.
    return _duplicates(representative, star[representative], distance[representative])


def _duplicates(
    representative: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], distance: npt.NDArray[np.int64]
) -> Duplicates:
    row = np.flatnonzero(kept != np.arange(len(kept)))
    return Duplicates(
        row=row,
        kept=kept[row],
        is_near=kept[row] != representative[row],
        distance=distance[row].astype(np.uint16),
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
    signatures: Signatures,
    links: ImageLinks,
    config: DedupConfig,
    rank: npt.NDArray[np.int64],
    is_candidate: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """(R,) for each candidate the best one with equal pixels in every image (and equal text); else the row itself."""
    representative = np.arange(len(rank))
    counts = np.diff(signatures.row_offsets)
    text = np.ascontiguousarray(signatures.text_hash).view(np.uint64)
    for count in np.unique(counts).tolist():
        if count == 0 and config.dedup_scope == "image":
            continue
        rows = np.flatnonzero(is_candidate & (counts == count))
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


def _gather_stars(
    signatures: Signatures,
    links: ImageLinks,
    config: DedupConfig,
    rank: npt.NDArray[np.int64],
    is_standing: npt.NDArray[np.bool_],
    star: npt.NDArray[np.int64],
    distance: npt.NDArray[np.int64],
) -> None:
    """Enter, for each row that is near a better one that is kept, that row into `star` and the distance.

    Only rows that stand for their equals (R bools) take part, best first, each against the rows kept so far.
    """
    graph = _PictureGraph(links)
    shown = links.picture[signatures.row_images]
    owner = np.repeat(np.arange(len(rank)), np.diff(signatures.row_offsets))
    rows = np.unique(owner[graph.is_linked[shown]])
    rows = rows[is_standing[rows]]
    kept_by_picture: dict[tuple[bytes, int, int], list[tuple[int, list[int]]]] = {}
    for row in rows[np.argsort(rank[rows])].tolist():
        pictures = shown[signatures.row_offsets[row] : signatures.row_offsets[row + 1]].tolist()
        text = signatures.text_hash[row].tobytes() if config.dedup_scope == "pair" else b""
        near = [graph.neighbours(picture) for picture in pictures]
        candidates = [
            (max(apart[picture] for apart, picture in zip(near, others, strict=True)), int(rank[other]), other)
            for first in near[0]
            for other, others in kept_by_picture.get((text, len(pictures), first), ())
            if all(picture in apart for apart, picture in zip(near, others, strict=True))
        ]
        if candidates:
            distance[row], _, star[row] = min(candidates)
        else:
            kept_by_picture.setdefault((text, len(pictures), pictures[0]), []).append((row, pictures))


class _PictureGraph:
    """The links between pictures, from either end."""

    def __init__(self, links: ImageLinks) -> None:
        ends = np.concatenate([links.pairs, links.pairs[:, ::-1]])
        order = np.argsort(ends[:, 0], kind="stable")
        self._from, self._to = ends[order].T
        self._distance = np.concatenate([links.distance, links.distance])[order]
        self.is_linked = np.zeros(len(links.picture), np.bool_)
        self.is_linked[self._from] = True

    def neighbours(self, picture: int) -> dict[int, int]:
        """The pictures linked to one, itself included, and their distances."""
        start, stop = np.searchsorted(self._from, [picture, picture + 1]).tolist()
        to, apart = self._to[start:stop].tolist(), self._distance[start:stop].tolist()
        return {picture: 0, **dict(zip(to, apart, strict=True))}
