"""Which rows go through the model together, and in what order: known before the run, the same on every machine.

An epoch is a list of steps, a step a list of forward passes on each device, a forward pass a list of rows. All of it
follows from the lengths of the rows and the seed, so that the heaviest forward pass of a run can be tried beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmtrain.speed.rounding import round_up

__all__ = ["BatchPlan", "RowBatches"]

# Rows of this many steps are sorted together: enough for like lengths, few enough to stay shuffled.
_WINDOW_STEPS = 64

Passes = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """How rows are arranged."""

    lengths: npt.NDArray[np.int64]
    """`(N,)` tokens of each row."""
    rows: int
    """Rows of one forward pass on one device."""
    passes: int
    """Forward passes of one step on one device."""
    processes: int = 1
    """Devices."""
    seed: int = 0
    """Of the order."""
    by_length: bool = False
    """Rows of like length share a forward pass."""
    tokens: int | None = None
    """Most tokens of a forward pass, in place of `rows`; what counts is `rows` × longest, or the sum when packed."""
    packed: bool = False
    """Rows are not padded to the longest."""
    rounded: bool = False
    """Rows are padded further, as `round_up` has it; says nothing where rows are packed."""

    @property
    def rows_a_step(self) -> int:
        """The global batch."""
        return self.rows * self.passes * self.processes

    @property
    def steps(self) -> int:
        """Of one epoch. Every step is whole but the last one, as every row is seen once."""
        if self.tokens is None:
            return math.ceil(math.ceil(len(self.lengths) / (self.rows * self.processes)) / self.passes)
        return math.ceil(len(self.arrange(0)) / (self.passes * self.processes))

    def arrange(self, epoch: int) -> Passes:
        """The forward passes of an epoch, those of all devices in turn: pass `i` goes to device `i % processes`.

        Args:
            epoch: From 0.

        Returns:
            Rows by number; every row once, but for those repeated to give each device as many passes as the others.
        """
        # by seed and epoch alone, whatever was drawn before: a resumed run finds the same order
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths)).tolist()
        if self.by_length:
            order = self._sort_windows(order)
        passes = self._cut(order)
        if self.by_length:
            passes = self._shuffle_windows(passes, epoch)
        missing = -len(passes) % self.processes
        return passes + [passes[i % len(passes)] for i in range(missing)]

    def cost(self, rows: list[int]) -> int:
        """Tokens that a forward pass over some rows computes, padding included."""
        lengths = self.lengths[rows]
        if self.packed:
            return int(lengths.sum())
        longest = int(lengths.max())
        return (round_up(longest) if self.rounded else longest) * len(rows)

    def padding(self, epoch: int = 0) -> float:
        """Share of an epoch's tokens that are padding."""
        passes = self.arrange(epoch)
        computed = sum(self.cost(rows) for rows in passes)
        return 1 - sum(int(self.lengths[rows].sum()) for rows in passes) / computed

    def heaviest(self, epochs: int = 4) -> list[int]:
        """The forward pass with most tokens of the first epochs; of later ones, none is much heavier."""
        return max((max(self.arrange(epoch), key=self.cost) for epoch in range(epochs)), key=self.cost)

    def _sort_windows(self, order: list[int]) -> list[int]:
        window = _WINDOW_STEPS * self.rows_a_step
        lengths = self.lengths
        sorted_rows: list[int] = []
        for start in range(0, len(order), window):
            sorted_rows += sorted(order[start : start + window], key=lambda row: (-int(lengths[row]), row))
        return sorted_rows

    def _cut(self, order: list[int]) -> Passes:
        if self.tokens is None:
            return [order[start : start + self.rows] for start in range(0, len(order), self.rows)]
        passes: Passes = []
        current: list[int] = []
        for row in order:
            if current and self.cost([*current, row]) > self.tokens:
                passes.append(current)
                current = []
            current.append(row)
        return [*passes, current] if current else passes

    def _shuffle_windows(self, passes: Passes, epoch: int) -> Passes:
        """Passes of one window in random order, those of one step on all devices staying together in length."""
        window = _WINDOW_STEPS * self.passes * self.processes
        draw = np.random.default_rng([self.seed, epoch, 1])
        shuffled: Passes = []
        for start in range(0, len(passes), window):
            # devices wait for the slowest: neighbours in length run at the same time
            whole = passes[start : start + window]
            groups = [whole[i : i + self.processes] for i in range(0, len(whole), self.processes)]
            ragged = [groups.pop()] if len(groups[-1]) < self.processes else []
            for i in draw.permutation(len(groups)):
                shuffled += groups[i]
            for group in ragged:
                shuffled += group
        return shuffled


class RowBatches:
    """An epoch's forward passes on one device, as torch's DataLoader takes them.

    Args:
        plan: The arrangement.
        process: Which of `plan.processes`.
    """

    def __init__(self, plan: BatchPlan, process: int = 0) -> None:
        self.plan = plan
        self.process = process
        self.epoch = 0
        # transformers tells the epoch to the batch sampler inside of the loader's, as accelerate would have wrapped it
        self.batch_sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Forward passes of an epoch on this device."""
        if self.plan.tokens is not None:
            return len(self.plan.arrange(self.epoch)) // self.plan.processes
        return math.ceil(len(self.plan.lengths) / (self.plan.rows * self.plan.processes))

    def __iter__(self) -> Iterator[list[int]]:
        """Rows by number, one list a forward pass."""
        yield from self.plan.arrange(self.epoch)[self.process :: self.plan.processes]
