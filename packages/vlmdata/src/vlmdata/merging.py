"""Which rows ask about the same pictures, and so can be turns of one conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vlmdata.dedup import Signatures

__all__ = ["Merges", "find_merges"]

# Conversations about one picture that are filled side by side, when rows that ask the same must stay apart.
_OPEN_CONVERSATIONS = 8

_Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Merges:
    """Rows that become further turns of others, ascending; J of them.

    Attributes:
        row: (J,) int64.
        host: (J,) int64, the row whose conversation each continues; it comes before, and is itself in none.
    """

    row: _Int64s
    host: _Int64s

    @classmethod
    def none(cls) -> Merges:
        """No row is merged."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(slots=True)
class _Conversation:
    host: int
    chars: int
    prompts: set[int] = field(default_factory=set)


def find_merges(
    signatures: Signatures,
    picture: _Int64s,
    system_hash: npt.NDArray[np.uint8],
    prompt_hash: npt.NDArray[np.uint64],
    is_candidate: npt.NDArray[np.bool_],
    *,
    max_rows: int,
    max_chars: int,
) -> Merges:
    """Join rows that show the same pictures, to the pixel and in the same order, after the same system text.

    A row continues the first conversation about its pictures that has room and does not ask the same yet: one question
    with two answers stays in two conversations. The result depends on the rows and their order alone.

    Args:
        signatures: R rows.
        picture: (M,) equal numbers for images with equal pixels.
        system_hash: (R, 16) of the system texts.
        prompt_hash: (R,) of what comes before the last answer.
        is_candidate: (R,) rows that are kept and can be continued.
        max_rows: rows that one conversation is made of at most.
        max_chars: characters that it has at most.
    """
    rows: list[int] = []
    hosts: list[int] = []
    for group in _group_rows(signatures, picture, system_hash, is_candidate):
        opened: list[_Conversation] = []
        for row in group.tolist():
            chars, prompt = int(signatures.text_length[row]), int(prompt_hash[row])
            found = next((c for c in opened if c.chars + chars <= max_chars and prompt not in c.prompts), None)
            if found is None:
                found = _Conversation(row, 0)
                opened = [*opened, found][-_OPEN_CONVERSATIONS:]
            else:
                rows.append(row)
                hosts.append(found.host)
            found.chars += chars
            found.prompts.add(prompt)
            if len(found.prompts) == max_rows:
                opened.remove(found)
    order = np.argsort(np.array(rows, np.int64), kind="stable")
    return Merges(np.array(rows, np.int64)[order], np.array(hosts, np.int64)[order])


def _group_rows(
    signatures: Signatures, picture: _Int64s, system_hash: npt.NDArray[np.uint8], is_candidate: npt.NDArray[np.bool_]
) -> Iterator[_Int64s]:
    """Yield the rows, ascending, of each group with equal pictures and system text that has more than one."""
    counts = np.diff(signatures.row_offsets)
    system = np.ascontiguousarray(system_hash).view(np.uint64)
    for count in np.unique(counts[is_candidate & (counts > 0)]).tolist():
        rows = np.flatnonzero(is_candidate & (counts == count))
        shown = signatures.row_images[signatures.row_offsets[rows, None] + np.arange(count)]
        keys = [*picture[shown].T, *system[rows].T]
        order = np.lexsort((rows, *keys))
        changes = np.zeros(len(rows), np.bool_)
        for key in keys:
            changes[1:] |= key[order][1:] != key[order][:-1]
        for group in np.split(rows[order], np.flatnonzero(changes)):
            if len(group) > 1:
                yield group
