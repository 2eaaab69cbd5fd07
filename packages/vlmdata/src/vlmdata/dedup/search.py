"""All pairs of 256-bit codes within a Hamming distance: exact, and far below quadratic for codes that differ.

The pigeonhole principle of multi-index hashing (Norouzi, Punjani and Fleet, "Fast exact search in Hamming space with
multi-index hashing", 2014), twice. Cut the bits into P parts: two codes within distance d differ in at most d // P bits
of one of them. Cut a part in which they differ in at most e bits into e + k chunks: at least k of those are equal. So
every pair that is wanted is equal in some k chunks of some part, and one sort for each choice of k chunks finds them
all. What is equal by chance is thrown out by counting bits.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

__all__ = ["Neighbours", "Plan", "choose_plan", "neighbours_within"]

_CODE_BITS = 256
_PARTS = (1, 2, 4, 8, 16, 32)
_MAX_CHUNKS_EQUAL = 4
# Measured costs in ns: one code in one sorted table, one pair compared in a table, one pair compared in sequence.
_TABLE_NS, _PAIR_NS, _SEQUENTIAL_PAIR_NS = 15.0, 20.0, 3.0
_KEY_BITS = 32
_DENSE_SHARE = 0.1
_CODES_IN_CACHE = 1 << 17
_MAX_CODES = 2**32


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Pairs of codes, each once.

    Attributes:
        pairs: (K, 2) int64, first index below the second, in ascending order.
        distance: (K,) uint16, differing bits.
    """

    pairs: npt.NDArray[np.int64]
    distance: npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to search.

    Attributes:
        radii: for each part of the bits, the differences looked for in it, -1 for none; empty to compare every pair.
        chunks_equal: k in the module's text.
        cost_ns: what it is expected to take on one processor.
    """

    radii: tuple[int, ...]
    chunks_equal: int
    cost_ns: float

    @property
    def tables(self) -> int:
        """How many sorts it takes."""
        return sum(math.comb(radius + self.chunks_equal, self.chunks_equal) for radius in self.radii if radius >= 0)


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
    if codes.ndim != 2 or codes.shape[1] * 8 != _CODE_BITS or codes.dtype != np.uint8:
        raise ValueError(f"codes must be (n, {_CODE_BITS // 8}) uint8, not {codes.shape} {codes.dtype}")
    if len(codes) > _MAX_CODES:
        raise ValueError(f"{len(codes)} codes, at most {_MAX_CODES} fit")
    words = np.ascontiguousarray(np.ascontiguousarray(codes).view(np.uint64).T)
    bit_entropy = _collision_entropy(codes)
    plan = choose_plan(len(codes), distance, bit_entropy)
    found = _PairSet()
    if not plan.radii:
        for pairs in _compare_all(words, distance, between):
            found.add(pairs)
    else:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            tables = _search_parts(codes, words, distance, between, plan, bit_entropy, pool)
            for table_pairs in tqdm(tables, "searching near-duplicates", plan.tables, disable=None, delay=2):
                found.add(table_pairs)
    first, second = found.unpacked()
    return Neighbours(np.stack([first, second], axis=1), _distances(words, first, second))


def choose_plan(count: int, distance: int, bit_entropy: npt.NDArray[np.float64]) -> Plan:
    """The plan of least expected cost for `count` codes.

    Args:
        count: n.
        distance: 0 to 255.
        bit_entropy: (256,) collision entropy of each bit, 1 for a fair one; bits are taken to be independent.
    """
    all_pairs = count * (count - 1) / 2
    best = Plan((), 0, all_pairs * _SEQUENTIAL_PAIR_NS)
    for parts in _PARTS:
        bits = _CODE_BITS // parts
        radius, remainder = divmod(distance, parts)
        # If the first remainder + 1 parts all differed in more than radius bits, the others would differ in fewer.
        radii = (radius,) * (remainder + 1) + (radius - 1,) * (parts - remainder - 1)
        for equal in range(1, _MAX_CHUNKS_EQUAL + 1):
            # the part with the fewest chunks has the widest keys
            if radius + equal > bits or equal * math.ceil(bits / (max(radii[-1], 0) + equal)) > _KEY_BITS:
                continue
            cost = 0.0
            for searched in (r for r in radii if r >= 0):
                chunks = searched + equal
                tables = math.comb(chunks, equal)
                by_chance = 2.0 ** -(float(bit_entropy.mean()) * bits * equal / chunks)
                cost += tables * (count * _TABLE_NS + all_pairs * by_chance * _PAIR_NS)
            if cost < best.cost_ns:
                best = Plan(radii, equal, cost)
    return best


def _collision_entropy(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """For each bit, -log2 of the chance that two codes agree in it, from at most 65,536 codes."""
    sample = np.unpackbits(codes[:: max(1, len(codes) // 65_536)], axis=1)
    ones = sample.mean(axis=0) if len(sample) else np.full(_CODE_BITS, 0.5)
    return np.asarray(-np.log2(ones**2 + (1 - ones) ** 2))


def _search_parts(
    codes: npt.NDArray[np.uint8],
    words: npt.NDArray[np.uint64],
    distance: int,
    between: int | None,
    plan: Plan,
    bit_entropy: npt.NDArray[np.float64],
    pool: Executor,
) -> Iterator[npt.NDArray[np.uint64]]:
    """Packed pairs within the distance, table by table; a pair may come more than once."""
    # Dealt out by entropy, so that every chunk of every part tells codes apart about equally well.
    dealt = np.argsort(-bit_entropy, kind="stable")
    columns = np.ascontiguousarray(codes.T)
    for part, radius in enumerate(plan.radii):
        if radius < 0:
            continue
        bits = dealt[part :: len(plan.radii)]
        chunk_count = radius + plan.chunks_equal
        cuts = [bits[chunk::chunk_count] for chunk in range(chunk_count)]
        chunks = list(pool.map(functools.partial(_gather_bits, columns), cuts))
        search = functools.partial(_search_table, chunks, [len(cut) for cut in cuts], words, distance, between)
        yield from pool.map(search, itertools.combinations(range(chunk_count), plan.chunks_equal))


def _gather_bits(columns: npt.NDArray[np.uint8], bits: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The chosen bits of each code side by side in one number."""
    gathered = np.zeros(columns.shape[1], np.uint32)
    # In blocks that stay in the processor's cache while all bits pass over them.
    for start in range(0, len(gathered), _CODES_IN_CACHE):
        some = gathered[start : start + _CODES_IN_CACHE]
        for bit in bits.tolist():
            some <<= np.uint32(1)
            some |= (columns[bit >> 3, start : start + _CODES_IN_CACHE] >> np.uint8(7 - (bit & 7))) & np.uint8(1)
    return gathered


def _search_table(
    chunks: Sequence[npt.NDArray[np.uint32]],
    widths: Sequence[int],
    words: npt.NDArray[np.uint64],
    distance: int,
    between: int | None,
    chosen: Sequence[int],
) -> npt.NDArray[np.uint64]:
    """Packed pairs within the distance among the codes that are equal in the chosen chunks."""
    keys = chunks[chosen[0]].copy()
    for chunk in chosen[1:]:
        keys <<= np.uint32(widths[chunk])
        keys |= chunks[chunk]
    # One sort of numbers, with the place behind the key, is faster than sorting places by key.
    numbers = keys.astype(np.uint64)
    numbers <<= np.uint64(_KEY_BITS)
    numbers |= np.arange(len(keys), dtype=np.uint32)
    numbers.sort()
    order = numbers.astype(np.uint32)
    numbers >>= np.uint64(_KEY_BITS)
    sorted_keys = numbers.astype(np.uint32)
    del numbers
    close = [np.empty(0, np.uint64)]
    for starts, step in _likely_pairs(sorted_keys, order, words[: _words_to_glance_at(distance)], distance):
        first, second = order[starts], order[starts + step]
        if between is not None:
            wanted = (first < between) != (second < between)
            first, second = first[wanted], second[wanted]
        near = _distances(words, first, second) <= distance
        close.append(_pack(first[near], second[near]))
    return np.concatenate(close)


def _likely_pairs(
    keys: npt.NDArray[np.uint32], order: npt.NDArray[np.uint32], glance: npt.NDArray[np.uint64], distance: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Pairs of equal sorted keys that the first words of their codes do not rule out, as places and a step from them.

    Most pairs are equal by chance. As long as many keys have an equal one a step further, whole columns in sorted order
    are compared; then only the places that still have one.
    """
    step = 1
    ordered: npt.NDArray[np.uint64] | None = None
    same = keys[1:] == keys[:-1]
    while np.count_nonzero(same) > len(keys) * _DENSE_SHARE:
        if ordered is None:
            # Column by column: indexing both axes at once takes several times as long.
            ordered = np.stack([np.take(column, order) for column in glance])
        near = _distances(ordered, slice(None, -step), slice(step, None)) <= distance
        yield np.flatnonzero(same & near), step
        step += 1
        same = keys[step:] == keys[:-step]
    starts = np.flatnonzero(same)
    while len(starts):
        yield starts[_distances(glance, order[starts], order[starts + step]) <= distance], step
        step += 1
        starts = starts[starts + step < len(keys)]
        starts = starts[keys[starts + step] == keys[starts]]


def _words_to_glance_at(distance: int) -> int:
    """Words of 64 bits after which few random pairs are left that differ in at most `distance` bits."""
    return min(_CODE_BITS // 64, 1 + distance // 20)


def _compare_all(words: npt.NDArray[np.uint64], distance: int, between: int | None) -> Iterator[npt.NDArray[np.uint64]]:
    count = words.shape[1]
    for row in range(count if between is None else between):
        others = row + 1 if between is None else between
        near = np.flatnonzero(_distances(words, slice(row, row + 1), slice(others, count)) <= distance)
        yield _pack(np.full(len(near), row, np.uint32), (near + others).astype(np.uint32))


def _distances(words: npt.NDArray[np.uint64], first: Any, second: Any) -> npt.NDArray[np.uint16]:
    """Differing bits between the codes at two indices (or slices) of the (w, n) words."""
    # All 256 bits differ between a picture and its negative, one more than a byte counts.
    total = np.bitwise_count(words[0][first] ^ words[0][second]).astype(np.uint16)
    for word in words[1:]:
        total += np.bitwise_count(word[first] ^ word[second])
    return np.asarray(total)


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
