"""All pairs of 256-bit codes within a Hamming distance: exact, and far below quadratic for codes that differ.

The pigeonhole principle of multi-index hashing (Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with
multi-index hashing", 2014), twice. Cut the bits into P parts: two codes within distance d differ in at most d // P bits
of one of them. Cut a part in which they differ in at most e bits into e + k chunks: at least k of those are equal. So
every pair that is wanted is equal in some k chunks of some part. What is equal by chance is thrown out by counting
bits, first of the part alone, which sorting has at hand: there too a wanted pair differs in at most e bits.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from vlmdata.dedup.code_parts import Part, Places, cut_parts, likely_pairs
from vlmdata.dedup.search_plan import CODE_BITS, choose_plan

__all__ = ["Neighbours", "neighbours_within"]

_MAX_CODES = 2**32
_BATCH_PAIRS = 1 << 17


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Pairs of codes, each once.

    Attributes:
        pairs: (K, 2) int64, first index below the second, in ascending order.
        distance: (K,) uint16, differing bits.
    """

    pairs: npt.NDArray[np.int64]
    distance: npt.NDArray[np.uint16]


def neighbours_within(
    codes: npt.NDArray[np.uint8], distance: int, *, between: int | None = None, threads: int | None = None
) -> Neighbours:
    """All pairs of codes that differ in at most `distance` bits.

    Args:
        codes: (n, 32) uint8.
        distance: 0 to 255.
        between: Only pairs of one of the first `between` codes and one of the others; None for pairs of all codes.
        threads: How many tables are worked on at once; by default one for each processor.

    Raises:
        ValueError: Codes of another shape, or too many of them.
    """
    if codes.ndim != 2 or codes.shape[1] * 8 != CODE_BITS or codes.dtype != np.uint8:
        raise ValueError(f"codes must be (n, {CODE_BITS // 8}) uint8, not {codes.shape} {codes.dtype}")
    if len(codes) > _MAX_CODES:
        raise ValueError(f"{len(codes)} codes, at most {_MAX_CODES} fit")
    rows = np.ascontiguousarray(codes).view(np.uint64)
    bit_entropy = _collision_entropy(codes)
    plan = choose_plan(len(codes), distance, bit_entropy)
    found = _PairSet()
    if not plan.radii:
        for pairs in _compare_all(rows, distance, between):
            found.add(pairs)
    else:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            parts = cut_parts(codes, plan, bit_entropy, pool)
            searches = [(part, lead) for part in parts for lead in range(part.radius + 1)]
            close = pool.map(functools.partial(_search_lead, rows, distance, between), searches)
            for near in tqdm(close, "searching near-duplicates", len(searches), disable=None, delay=2):
                found.add(near)
    first, second = found.unpacked()
    return Neighbours(np.stack([first, second], axis=1), _distances(rows, first, second))


def _collision_entropy(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """For each bit, -log2 of the chance that two codes agree in it, from at most 65,536 codes."""
    sample = np.unpackbits(codes[:: max(1, len(codes) // 65_536)], axis=1)
    ones = sample.mean(axis=0) if len(sample) else np.full(CODE_BITS, 0.5)
    return np.asarray(-np.log2(ones**2 + (1 - ones) ** 2))


def _search_lead(
    rows: npt.NDArray[np.uint64], distance: int, between: int | None, search: tuple[Part, int]
) -> npt.NDArray[np.uint64]:
    """Packed pairs within the distance that are equal in some chunks of a part, the first of which is `lead`.

    A pair may come more than once.
    """
    close = [np.empty(0, np.uint64)]
    for first, second in _in_batches(likely_pairs(*search)):
        if between is not None:
            wanted = (first < between) != (second < between)
            first, second = first[wanted], second[wanted]
        near = _distances(rows, first, second) <= distance
        close.append(_pack(first[near], second[near]))
    return np.concatenate(close)


def _in_batches(pairs: Iterable[Places]) -> Iterator[Places]:
    """The same pairs in fewer, larger arrays."""
    waiting: list[Places] = []
    count = 0
    for pair in pairs:
        waiting.append(pair)
        count += len(pair[0])
        if count >= _BATCH_PAIRS:
            yield np.concatenate([first for first, _ in waiting]), np.concatenate([second for _, second in waiting])
            waiting, count = [], 0
    if waiting:
        yield np.concatenate([first for first, _ in waiting]), np.concatenate([second for _, second in waiting])


def _compare_all(rows: npt.NDArray[np.uint64], distance: int, between: int | None) -> Iterator[npt.NDArray[np.uint64]]:
    columns = np.ascontiguousarray(rows.T)
    for row in range(len(rows) if between is None else between):
        others = row + 1 if between is None else between
        # All 256 bits differ between a picture and its negative, one more than a byte counts.
        total = np.zeros(len(rows) - others, np.uint16)
        for column in columns:
            total += np.bitwise_count(column[others:] ^ column[row])
        near = np.flatnonzero(total <= distance)
        yield _pack(np.full(len(near), row, np.uint32), (near + others).astype(np.uint32))


def _distances(
    rows: npt.NDArray[np.uint64], first: npt.NDArray[np.integer[Any]], second: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.uint16]:
    """Differing bits between pairs of rows of the (n, 4) codes."""
    apart = rows.take(first, axis=0)
    apart ^= rows.take(second, axis=0)
    return np.asarray(np.bitwise_count(apart).sum(axis=1, dtype=np.uint16))


class _PairSet:
    """Pairs that come in any order and more than once, kept as sorted numbers in bounded memory."""

    def __init__(self) -> None:
        self._merged = np.empty(0, np.uint64)
        self._pending: list[npt.NDArray[np.uint64]] = []
        self._pending_count = 0

    def add(self, packed: npt.NDArray[np.uint64]) -> None:
        if not len(packed):
            return
        self._pending.append(packed)
        self._pending_count += len(packed)
        if self._pending_count > max(1_000_000, len(self._merged)):
            self._merge()

    def unpacked(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        self._merge()
        return (self._merged >> np.uint64(32)).astype(np.int64), (self._merged & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def _merge(self) -> None:
        self._merged = np.unique(np.concatenate([self._merged, *self._pending]))
        self._pending, self._pending_count = [], 0


def _pack(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    low, high = np.minimum(first, second), np.maximum(first, second)
    return (low.astype(np.uint64) << np.uint64(32)) | high
