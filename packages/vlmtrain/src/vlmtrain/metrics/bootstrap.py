"""Bootstrap intervals over rows, for any metric that is computed from sums of per-row counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_interval", "bootstrap_values", "paired_p_value"]

CELLS_AT_ONCE = 4_000_000
"""Row counts held in memory at once: 32 MB."""

Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _draw_counts(rows: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks (resamples, rows): how often each row was drawn. The same for the same arguments."""
    rng = np.random.default_rng(seed)
    block = max(1, CELLS_AT_ONCE // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, rows, size=(size, rows)) + np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def bootstrap_values(
    counts: NDArray[np.float64], combine: Combine, *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Return a metric's value on resampled sets of rows (Efron, 1979).

    Two sets of counts over the same rows, given the same seed, are resampled alike: their values are paired.

    Args:
        counts: (rows, k) per-row counts.
        combine: Makes (..., k) summed counts into (...) values.
        resamples: How many sets to draw.
        seed: Seed of the draws.

    Returns:
        (resamples,).
    """
    return np.concatenate([combine(drawn @ counts) for drawn in _draw_counts(len(counts), resamples, seed)])


def bootstrap_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrapped values that holds the share `level` of them."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def paired_p_value(differences: NDArray[np.float64]) -> float:
    """Return the two-sided bootstrap p-value of a difference being zero; never below 1 / (resamples + 1)."""
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1)))
