"""Overlap metrics for longer texts: ROUGE-L and chrF."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

from vlmtrain.metrics.matching import best_of, canonical_text

__all__ = ["chrf", "chrf_of_counts", "count_ngrams", "rouge_l"]

CHRF_ORDER = 6
CHRF_BETA = 2.0

# Scripts that put no space between words give one token a character.
WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|[^\W_぀-ヿ㐀-䶿一-鿿]+")


def _lcs_f1(prediction: str, reference: str) -> float:
    predicted, expected = (WORD.findall(canonical_text(text).lower()) for text in (prediction, reference))
    if not predicted or not expected:
        return 0.0
    return 2 * LCSseq.similarity(predicted, expected) / (len(predicted) + len(expected))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of words, for the best reference (Lin, 2004).

    Lower case, letters and digits only, no stemming, as the rouge-score package does on English; other scripts keep
    their letters, and each Chinese or Japanese character is a word.
    """
    return best_of(prediction, references, _lcs_f1)


def _ngrams(text: str) -> list[Counter[str]]:
    characters = "".join(canonical_text(text).split())
    return [
        Counter(characters[start : start + order] for start in range(len(characters) - order + 1))
        for order in range(1, CHRF_ORDER + 1)
    ]


def count_ngrams(prediction: str, references: Sequence[str]) -> NDArray[np.float64]:
    """Return the counts that chrF is made of, for the reference with the highest chrF.

    Returns:
        (18,): for each order from 1 to 6 the n-grams of the prediction, of the reference, and in common. Orders that
        the reference is too short for count no n-grams of the prediction either.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("a row without a reference cannot be scored")
    predicted = _ngrams(prediction)
    candidates = []
    for reference in references:
        counts = [
            (left.total() if right else 0, right.total(), (left & right).total())
            for left, right in zip(predicted, _ngrams(reference), strict=True)
        ]
        candidates.append(np.asarray(counts, dtype=np.float64).ravel())
    return max(candidates, key=lambda counts: float(chrf_of_counts(counts)))


def chrf_of_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return chrF from (possibly summed) counts, as sacrebleu combines them, between 0 and 1.

    Args:
        counts: (..., 18), see `count_ngrams`.

    Returns:
        (...).
    """
    by_order = counts.reshape(*counts.shape[:-1], CHRF_ORDER, 3)
    predicted, expected, common = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    used = (predicted > 0) & (expected > 0)
    orders = np.maximum(used.sum(axis=-1), 1)
    precision = np.where(used, common / np.maximum(predicted, 1), 0).sum(axis=-1) / orders
    recall = np.where(used, common / np.maximum(expected, 1), 0).sum(axis=-1) / orders
    weight = CHRF_BETA**2
    below = weight * precision + recall
    result: NDArray[np.float64] = np.where(
        below > 0, (1 + weight) * precision * recall / np.where(below > 0, below, 1), 0.0
    )
    return result


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Return chrF (character n-grams up to 6, recall weighted twice; Popović, 2015), for the best reference, 0 to 1."""
    return float(chrf_of_counts(count_ngrams(prediction, references)))
