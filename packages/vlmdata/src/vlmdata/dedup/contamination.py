"""Which rows show a picture of an evaluation set: by equal pixels, or nearly the same as duplicates are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlmdata.dedup.links import first_equal
from vlmdata.dedup.search import neighbours_within
from vlmdata.dedup.signatures import Signatures
from vlmdata.dedup.verification import verify_pairs

__all__ = ["UNVERIFIED_DISTANCE", "Contamination", "EvaluationImages", "find_contamination"]

# Without the small copies nothing but the hash speaks: chosen with benchmarks/near_duplicates.py, where one of 22,879
# pairs of pages that are this close was of different ones (one in 26 at the usual distance of 31).
UNVERIFIED_DISTANCE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationImages:
    """N pictures of evaluation sets.

    Attributes:
        name: (N,) texts, what each is called in rejected.jsonl.
        pixel_hash: (N, 16) uint8, `PreparedImage.pixel_hash`.
        phash: (N, 32) uint8, `PreparedImage.phash`.
        is_flat: (N,) bool, pictures that only equal pixels can be told by.
        thumbnail: (N, T) uint8, `PreparedImage.thumbnail`, may be memory-mapped; None where only hashes are known.
    """

    name: pa.ChunkedArray[Any]
    pixel_hash: npt.NDArray[np.uint8]
    phash: npt.NDArray[np.uint8]
    is_flat: npt.NDArray[np.bool_]
    thumbnail: npt.NDArray[np.uint8] | None

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.pixel_hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """Rows that show a picture of an evaluation set, ascending; C of them, each with the picture that is closest.

    Attributes:
        row: (C,) int64.
        position: (C,) int64, which of the row's images it is.
        part: (C,) int64, which of the evaluation sets that were compared.
        image: (C,) int64, which picture of that set.
        is_near: (C,) bool, False where all pixels are equal.
        distance: (C,) uint16, differing bits of the perceptual hashes.
    """

    row: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]
    image: npt.NDArray[np.int64]
    is_near: npt.NDArray[np.bool_]
    distance: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        """How many rows are to be dropped."""
        return len(self.row)

    def describe(self, parts: Sequence[EvaluationImages]) -> Iterator[tuple[int, int, str, bool, int]]:
        """Yield each row, its image, the name of the evaluation picture, whether it is only near, and the distance."""
        for row, position, part, image, is_near, distance in zip(
            self.row.tolist(),
            self.position.tolist(),
            self.part.tolist(),
            self.image.tolist(),
            self.is_near.tolist(),
            self.distance.tolist(),
            strict=True,
        ):
            yield row, position, parts[part].name[image].as_py(), is_near, distance


# One line for each image of the set that has a match: the image, whether it is near, the distance, part and picture.
_MATCH = np.dtype(
    [("found", np.int64), ("is_near", np.bool_), ("distance", np.uint16), ("part", np.int64), ("image", np.int64)]
)


def find_contamination(signatures: Signatures, parts: Sequence[EvaluationImages], near_distance: int) -> Contamination:
    """Find the rows that show a picture of one of the evaluation sets, in any of their images.

    Args:
        signatures: The set.
        parts: Evaluation sets.
        near_distance: Most bits in which the perceptual hashes of nearly equal pictures differ; at most
            `UNVERIFIED_DISTANCE` for sets without small copies.
    """
    matches = [np.empty(0, _MATCH)]
    for number, part in enumerate(parts):
        matches += [_match_pixels(signatures, part, number), _match_nearly(signatures, part, number, near_distance)]
    closest = _first_of_each(np.concatenate(matches), "found", ("is_near", "distance", "part", "image"))
    match_of = np.full(len(signatures.pixel_hash), len(closest))
    match_of[closest["found"]] = np.arange(len(closest))
    shown = match_of[signatures.row_images]
    references = np.flatnonzero(shown < len(closest))
    counts = np.diff(signatures.row_offsets)
    rows = np.repeat(np.arange(len(counts)), counts)[references]
    found = closest[shown[references]]
    order = np.lexsort((references, found["distance"], found["is_near"], rows))
    first = order[np.unique(rows[order], return_index=True)[1]]
    return Contamination(
        row=rows[first],
        position=references[first] - signatures.row_offsets[rows[first]],
        part=found["part"][first],
        image=found["image"][first],
        is_near=found["is_near"][first],
        distance=found["distance"][first],
    )


def _match_pixels(signatures: Signatures, part: EvaluationImages, number: int) -> npt.NDArray[np.void]:
    image = first_equal(np.concatenate([part.pixel_hash, signatures.pixel_hash]))[len(part) :]
    found = np.flatnonzero(image < len(part))
    return _matches(found, image[found], np.zeros(len(found), np.uint16), number, is_near=False)


def _match_nearly(
    signatures: Signatures, part: EvaluationImages, number: int, near_distance: int
) -> npt.NDArray[np.void]:
    limit = near_distance if part.thumbnail is not None else min(near_distance, UNVERIFIED_DISTANCE)
    ours, theirs = np.flatnonzero(~signatures.is_flat), np.flatnonzero(~part.is_flat)
    codes = np.concatenate([signatures.phash[ours], part.phash[theirs]])
    near = neighbours_within(codes, limit, between=len(ours))
    found, image, distance = ours[near.pairs[:, 0]], theirs[near.pairs[:, 1] - len(ours)], near.distance
    if part.thumbnail is not None:
        same = verify_pairs(signatures.thumbnail, np.stack([found, image], axis=1), distance, others=part.thumbnail)
        found, image, distance = found[same], image[same], distance[same]
    return _matches(found, image, distance, number, is_near=True)


def _matches(
    found: npt.NDArray[np.int64],
    image: npt.NDArray[np.int64],
    distance: npt.NDArray[np.uint16],
    number: int,
    *,
    is_near: bool,
) -> npt.NDArray[np.void]:
    """One match for each image that was found, the closest; the first of equally close ones."""
    matches = np.zeros(len(found), _MATCH)
    matches["found"], matches["image"], matches["distance"] = found, image, distance
    matches["part"], matches["is_near"] = number, is_near
    return _first_of_each(matches, "found", ("distance", "image"))


def _first_of_each(matches: npt.NDArray[np.void], key: str, rank: Sequence[str]) -> npt.NDArray[np.void]:
    ordered = matches[np.lexsort([matches[name] for name in (*reversed(rank), key)])]
    return ordered[np.unique(ordered[key], return_index=True)[1]]
