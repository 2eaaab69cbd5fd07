"""Parts of codes, and the pairs that are near in one, by sorting it in as many ways as its plan says.

Of the choices of k chunks, those that begin with the same chunk share one sort of all codes by that chunk. It cuts the
codes into blocks that stay in the processor's cache while they are sorted by each choice.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vlmdata.dedup.search_plan import Plan

__all__ = ["Part", "Places", "cut_parts", "likely_pairs"]

Places: TypeAlias = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]
"""Where the first and the second codes of some pairs stand."""

_PLACE_BITS = 32
# Of codes that are worked on together, so that they stay in the processor's cache.
_BLOCK_CODES = 1 << 17
_GATHERED_CODES = 1 << 15
# Below this share of codes with an equal one, the others are left out of comparisons.
_DENSE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """Some bits of all codes.

    Attributes:
        words: (n,) uint32, the bits of each code side by side, chunk by chunk from the highest one.
        widths: bits of each chunk.
        radius: the differences that are looked for.
        chunks_equal: k in the text of `dedup.search`.
    """

    words: npt.NDArray[np.uint32]
    widths: Sequence[int]
    radius: int
    chunks_equal: int


def cut_parts(
    codes: npt.NDArray[np.uint8], plan: Plan, bit_entropy: npt.NDArray[np.float64], pool: Executor
) -> list[Part]:
    """Cut codes into the parts that a plan looks at.

    Args:
        codes: (n, 32) uint8.
        plan: Into how many parts, and these into how many chunks.
        bit_entropy: (256,) collision entropy of each bit; bits are dealt out by it, so that every chunk of every part
            tells codes apart about equally well.
        pool: Where to work.
    """
    dealt = np.argsort(-bit_entropy, kind="stable")
    radii = [radius for radius in plan.radii if radius >= 0]
    chunks = []
    for part, radius in enumerate(radii):
        bits, count = dealt[part :: len(plan.radii)], radius + plan.chunks_equal
        chunks.append([bits[chunk::count] for chunk in range(count)])
    words = [np.zeros(len(codes), np.uint32) for _ in radii]
    gather = functools.partial(_gather_bits, codes, [np.concatenate(cuts).tolist() for cuts in chunks], words)
    for _ in pool.map(gather, range(0, len(codes), _GATHERED_CODES)):
        pass
    return [
        Part(bits, [len(chunk) for chunk in cuts], radius, plan.chunks_equal)
        for bits, cuts, radius in zip(words, chunks, radii, strict=True)
    ]


def _gather_bits(
    codes: npt.NDArray[np.uint8], parts: Sequence[Sequence[int]], words: Sequence[npt.NDArray[np.uint32]], start: int
) -> None:
    """Write the bits of each part side by side into its words, the first one highest, for the codes after `start`."""
    columns = np.ascontiguousarray(codes[start : start + _GATHERED_CODES].T)
    byte, moved = np.empty_like(columns[0]), np.empty_like(columns[0])
    for bits, into in zip(parts, words, strict=True):
        word = into[start : start + _GATHERED_CODES]
        # Byte by byte: operations on bytes take a quarter of the time of those on words.
        for low in range(0, len(bits), 8):
            byte[:] = 0
            for at, bit in enumerate(bits[::-1][low : low + 8]):
                shift = 7 - (bit & 7) - at
                if shift >= 0:
                    np.right_shift(columns[bit >> 3], shift, out=moved)
                else:
                    np.left_shift(columns[bit >> 3], -shift, out=moved)
                moved &= 1 << at
                byte |= moved
            word |= byte.astype(np.uint32) << np.uint32(low)


def likely_pairs(part: Part, lead: int) -> Iterator[Places]:
    """Yield pairs of codes that are equal in chunk `lead` and enough later ones, and near in the part.

    A pair comes once for each choice of chunks in which it is equal.
    """
    numbers, chunks = _turn_to(part, lead)
    numbers.sort()
    # The first choice, of chunks that follow each other, is what all codes have just been sorted by.
    choices = itertools.combinations(chunks[1:], part.chunks_equal - 1)
    masks = [np.uint32(chunks[0] + sum(others)) for others in choices]
    for block in _cut_blocks(numbers, chunks[0]):
        bits, places = (block >> np.uint64(_PLACE_BITS)).astype(np.uint32), block.astype(np.uint32)
        for number, mask in enumerate(masks):
            if number:
                order = _order_by(bits & mask)
                bits, places = bits[order], places[order]
            for one, other in _pairs_in_block(bits, mask, part.radius):
                yield places[one], places[other]


def _turn_to(part: Part, lead: int) -> tuple[npt.NDArray[np.uint64], list[int]]:
    """The bits of a part turned until chunk `lead` is highest, and where it and each later chunk are in them.

    Behind the bits stands the place of the code: sorting such numbers is faster than sorting places by bits.
    """
    total, before = sum(part.widths), sum(part.widths[:lead])
    numbers = np.empty(len(part.words), np.uint64)
    for start in range(0, len(numbers), _BLOCK_CODES):
        turned = part.words[start : start + _BLOCK_CODES]
        if lead:
            turned = (turned << np.uint32(before)) | (turned >> np.uint32(total - before))
            turned &= np.uint32((1 << total) - 1)
        block = numbers[start : start + _BLOCK_CODES]
        block[:] = turned
        block <<= np.uint64(_PLACE_BITS)
        block |= np.arange(start, start + len(block), dtype=np.uint64)
    masks, top = [], total
    for width in part.widths[lead:]:
        masks.append(((1 << width) - 1) << (top - width))
        top -= width
    return numbers, masks


def _cut_blocks(numbers: npt.NDArray[np.uint64], lead_mask: int) -> Iterator[npt.NDArray[np.uint64]]:
    """Sorted words with their places in blocks of about the same length, never between two of equal lead."""
    below_lead = np.uint64(((lead_mask & -lead_mask) << _PLACE_BITS) - 1)
    start = 0
    while start < len(numbers):
        end = start + _BLOCK_CODES
        if end < len(numbers):
            end = int(np.searchsorted(numbers, numbers[end - 1] | below_lead, side="right"))
        yield numbers[start:end]
        start = end


def _order_by(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
    numbers = keys.astype(np.uint64)
    numbers <<= np.uint64(_PLACE_BITS)
    numbers |= np.arange(len(keys), dtype=np.uint32)
    numbers.sort()
    numbers &= np.uint64((1 << _PLACE_BITS) - 1)
    return numbers.astype(np.intp)


def _pairs_in_block(
    bits: npt.NDArray[np.uint32], mask: np.uint32, radius: int
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Places of pairs that are equal under a mask, by which they are sorted, and differ in at most `radius` bits.

    Most pairs are equal by chance. As long as many have an equal one a step further, all are compared with
    what is a step further; then only those that still have one.
    """
    step = 1
    apart = bits[1:] ^ bits[:-1]
    same = (apart & mask) == 0
    while np.count_nonzero(same) > len(bits) * _DENSE_SHARE:
        near = np.flatnonzero(same & (np.bitwise_count(apart) <= radius))
        yield near, near + step
        step += 1
        apart = bits[step:] ^ bits[:-step]
        same = (apart & mask) == 0
    starts = np.flatnonzero(same)
    while len(starts):
        near = starts[np.bitwise_count(bits[starts] ^ bits[starts + step]) <= radius]
        yield near, near + step
        step += 1
        starts = starts[starts + step < len(bits)]
        starts = starts[((bits[starts] ^ bits[starts + step]) & mask) == 0]
