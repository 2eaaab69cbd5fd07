"""The second signal: whether two pictures with nearly the same perceptual hash are nearly the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["correlations", "verify_pairs"]

_PAIRS_AT_ONCE = 16_384
_LEAST_CORRELATION = 0.98


def verify_pairs(thumbnail: npt.NDArray[np.uint8], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the candidate pairs show the same picture.

    Args:
        thumbnail: (M, T) uint8 grey copies.
        pairs: (K, 2) int64 indices into them.

    Returns:
        (K,) bool.
    """
    verdicts = [np.empty(0, np.bool_)]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[start : start + _PAIRS_AT_ONCE]
        verdicts.append(correlations(thumbnail[some[:, 0]], thumbnail[some[:, 1]]) >= _LEAST_CORRELATION)
    return np.concatenate(verdicts)


def correlations(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pearson correlation, row by row, of two (K, T) arrays; 0 where one row is constant."""
    a = first.astype(np.float32) - first.mean(axis=1, dtype=np.float32, keepdims=True)
    b = second.astype(np.float32) - second.mean(axis=1, dtype=np.float32, keepdims=True)
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    products = (a * b).sum(axis=1)
    return np.asarray(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))
