"""How to look for near codes: in how many parts, and how many chunks of a part must be equal (see `dedup.search`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CODE_BITS", "Plan", "choose_plan"]

CODE_BITS = 256
_PARTS = (8, 16, 32)  # of at most 32 bits each
_MAX_CHUNKS_EQUAL = 4
# Measured costs in ns: one code in one sorted table, one pair compared in a table, one pair compared in sequence.
_TABLE_NS, _PAIR_NS, _SEQUENTIAL_PAIR_NS = 8.0, 3.0, 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How to search.

    Attributes:
        radii: for each part of the bits, the differences looked for in it, -1 for none; empty to compare every pair.
        chunks_equal: k in the text of `dedup.search`.
        cost_ns: what it is expected to take on one processor.
    """

    radii: tuple[int, ...]
    chunks_equal: int
    cost_ns: float

    @property
    def tables(self) -> int:
        """How many sorts it takes."""
        return sum(math.comb(radius + self.chunks_equal, self.chunks_equal) for radius in self.radii if radius >= 0)


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
        bits = CODE_BITS // parts
        radius, remainder = divmod(distance, parts)
        # If the first remainder + 1 parts all differed in more than radius bits, the others would differ in fewer.
        radii = (radius,) * (remainder + 1) + (radius - 1,) * (parts - remainder - 1)
        for equal in range(1, _MAX_CHUNKS_EQUAL + 1):
            if radius + equal > bits:
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
