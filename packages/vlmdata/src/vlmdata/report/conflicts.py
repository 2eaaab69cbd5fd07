"""Label conflicts: kept rows that show the same picture and ask the same, and are answered differently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from vlmdata.dedup import ImageLinks, Signatures
from vlmdata.dedup.signatures import normalize_text
from vlmdata.pages.html import Html, count_of, cut, tag
from vlmdata.report.staged_rows import StagedRows, show_row
from vlmdata.stage import StagedFiles, StagedSet, open_staged

__all__ = ["Conflict", "find_conflicts", "render_conflicts"]

_SHOWN_CONFLICTS = 10
_SHOWN_ANSWERS = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows that contradict each other.

    Attributes:
        places: of one row for each different answer, among all prepared rows.
        rows: how many rows show the picture and ask the question.
    """

    places: tuple[int, ...]
    rows: int


def find_conflicts(stage: Path, staged: StagedSet, links: ImageLinks, is_kept: npt.NDArray[np.bool_]) -> list[Conflict]:
    """Find rows with the same pictures and prompt but different answers; those with the most answers come first.

    Pictures are the same where pixels are equal, or where they are linked as near-duplicates. Texts are compared as
    deduplication compares them. Only rows that share their pictures with another row are read.

    Args:
        stage: the folder of the staged partitions.
        staged: R prepared rows.
        links: of their images.
        is_kept: (R,) bool, whether a row is in a split.
    """
    keys = _picture_keys(staged.signatures, links)
    candidates = np.flatnonzero(is_kept & (np.diff(staged.signatures.row_offsets) > 0))
    _, inverse, counts = np.unique(keys[candidates], return_inverse=True, return_counts=True)
    candidates = candidates[counts[inverse] > 1]
    if not len(candidates):
        return []
    said = np.array([_hash_turns(row) for row in _read_messages(stage, staged, candidates)], np.uint64)
    prompts = _mix(keys[candidates], said[:, 0])
    order = np.lexsort((candidates, prompts))
    begins = np.flatnonzero(np.concatenate([[True], prompts[order][1:] != prompts[order][:-1]]))
    conflicts = []
    for group in np.split(order, begins[1:]):
        _, first = np.unique(said[group, 1], return_index=True)
        if len(first) > 1:
            places = candidates[group[np.sort(first)]].tolist()
            conflicts.append(Conflict(tuple(places), len(group)))
    return sorted(conflicts, key=lambda conflict: (-len(conflict.places), conflict.places))


def _picture_keys(signatures: Signatures, links: ImageLinks) -> npt.NDArray[np.uint64]:
    """(R,) the same number for rows that show the same pictures in the same order."""
    stands_for = np.arange(len(links.picture))
    for first, second in links.pairs.tolist():
        # stars, not chains: both ends of a chain may be quite different pictures
        if stands_for[first] == first and stands_for[second] == second:
            stands_for[second] = first
    shown = stands_for[links.picture][signatures.row_images].astype(np.uint64)
    counts = np.diff(signatures.row_offsets)
    keys = counts.astype(np.uint64)
    for position in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > position)
        keys[rows] = _mix(keys[rows], shown[signatures.row_offsets[rows] + position])
    return keys


def _mix(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = (left ^ (right + np.uint64(1))) * _MULTIPLIER
    return mixed ^ (mixed >> np.uint64(29))


def _read_messages(stage: Path, staged: StagedSet, places: npt.NDArray[np.int64]) -> Iterator[list[dict[str, Any]]]:
    first = 0
    for partition in staged.partitions:
        if partition.kept and np.searchsorted(places, first) < np.searchsorted(places, first + partition.kept):
            begin = first
            for batch in open_staged(StagedFiles(stage, partition.number)):
                mine = places[np.searchsorted(places, begin) : np.searchsorted(places, begin + batch.num_rows)]
                messages = batch.column("messages").take(cast(Any, pa.array(mine - begin)))
                yield from cast("list[list[dict[str, Any]]]", messages.to_pylist())
                begin += batch.num_rows
        first += partition.kept


def _hash_turns(messages: list[dict[str, Any]]) -> tuple[int, int]:
    """Hashes of all that comes before the last turn, and of the last turn."""
    asked, answered = xxhash.xxh3_64(), xxhash.xxh3_64()
    for i, message in enumerate(messages):
        digest = answered if i == len(messages) - 1 else asked
        digest.update(f"\1{message['role']}".encode())
        for part in message["content"]:
            digest.update(b"\2" if part["text"] is None else f"\3{normalize_text(part['text'])}".encode())
    return asked.intdigest(), answered.intdigest()


def render_conflicts(conflicts: list[Conflict], rows: StagedRows) -> Iterator[Html]:
    """Yield how many conflicts there are, and the first of them side by side."""
    if not conflicts:
        yield tag("p", "No two kept rows show the same image and ask the same with different answers.")
        return
    total = sum(conflict.rows for conflict in conflicts)
    yield tag(
        "p",
        f"{count_of(len(conflicts), 'time')} the same image (or nearly the same) and the same prompt have different "
        f"answers, in {total:,} rows. All of them are kept: which answer is right is for you to say.",
    )
    shown = [_render_conflict(conflict, rows) for conflict in conflicts[:_SHOWN_CONFLICTS]]
    yield tag("div", shown, class_="groups")
    if len(conflicts) > _SHOWN_CONFLICTS:
        yield tag("p", f"and {len(conflicts) - _SHOWN_CONFLICTS:,} more", class_="soft")


def _render_conflict(conflict: Conflict, rows: StagedRows) -> Html:
    first = rows.read(conflict.places[0])
    before = (part for message in first["messages"][:-1] for part in message["content"])
    asked = " · ".join(part["text"] for part in before if part["text"] is not None)
    figures = [
        show_row(rows.read(place), f"answer {i}", with_prompt=False)
        for i, place in enumerate(conflict.places[:_SHOWN_ANSWERS], 1)
    ]
    heading = tag("h3", cut(asked, 200))
    counted = f"{len(conflict.places)} different answers in {conflict.rows} rows"
    return tag("article", heading, tag("p", counted, class_="soft"), tag("div", figures, class_="strip"))
