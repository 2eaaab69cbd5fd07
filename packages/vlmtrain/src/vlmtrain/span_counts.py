"""The answers of many rows counted at once: what `masks` finds row by row, a hundred times as fast.

`masks` is the reference, and what training uses; a test holds the two to the same numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmtrain.masks import MaskRules

__all__ = ["SpanCounts", "count_spans"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanCounts:
    """What is in the answers of each row, as arrays of one value a row."""

    spans: _Ints
    """`(N,)` answers found."""
    supervised: _Ints
    """`(N,)` tokens that carry loss."""
    unterminated: _Ints
    """`(N,)` answers without a token at which generation stops."""


def count_spans(
    rows: Sequence[Sequence[int]], rules: MaskRules, stop_ids: Iterable[int], *, last_turn_only: bool = False
) -> SpanCounts:
    """Finds and counts the answers of rows.

    Args:
        rows: Token ids of each row.
        rules: The processor's markers and special ids.
        stop_ids: The ids at which the model's generation stops.
        last_turn_only: Only the last answer of a row carries loss.
    """
    counts = SpanCounts(
        spans=np.zeros(len(rows), np.int64),
        supervised=np.zeros(len(rows), np.int64),
        unterminated=np.zeros(len(rows), np.int64),
    )
    bounds = np.concatenate([[0], np.cumsum([len(ids) for ids in rows], dtype=np.int64)])
    if not bounds[-1]:
        return counts
    ids = np.concatenate([np.asarray(each, np.int64) for each in rows])
    row_of = np.repeat(np.arange(len(rows)), np.diff(bounds))
    starts = _occurrences(ids, row_of, rules.response_ids)
    is_stop = np.isin(ids, list(rules.stop_ids))
    is_end = is_stop | (ids == rules.bos_id if rules.bos_id is not None else False)
    for pattern in (rules.response_ids, rules.turn_ids, rules.instruction_ids):
        if pattern:
            is_end[_occurrences(ids, row_of, pattern)] = True
    ends = np.flatnonzero(is_end).tolist()
    learned_before = np.concatenate([[0], np.cumsum(~np.isin(ids, list(rules.never_ids)))])
    stops_before = np.concatenate([[0], np.cumsum(np.isin(ids, list(set(stop_ids) - rules.never_ids)))])
    behind = 0
    for start, row in zip(starts.tolist(), row_of[starts].tolist(), strict=True):
        if start < behind:
            continue
        begin, last = start + len(rules.response_ids), int(bounds[row + 1])
        place = bisect_left(ends, begin)
        end = min(ends[place], last) if place < len(ends) else last
        if end < last and is_stop[end]:
            end += 1
        behind = max(end, begin)
        learned = learned_before[end] - learned_before[begin]
        counts.spans[row] += 1
        counts.supervised[row] = learned + (0 if last_turn_only else counts.supervised[row])
        counts.unterminated[row] += stops_before[end] == stops_before[begin]
    return counts


def _occurrences(ids: _Ints, row_of: _Ints, pattern: Sequence[int]) -> _Ints:
    """Where a pattern begins, when the whole of it lies in one row."""
    length = len(ids) - len(pattern) + 1
    if length <= 0:
        return np.zeros(0, np.int64)
    found = row_of[:length] == row_of[len(pattern) - 1 :]
    for offset, token in enumerate(pattern):
        found &= ids[offset : offset + length] == token
    return np.flatnonzero(found)
