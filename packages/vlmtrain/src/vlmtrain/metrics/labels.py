"""Metrics for sets whose answers are labels: macro-F1 and the confusion table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmdata.errors import DataError
from vlmtrain.metrics.matching import best_of, canonical_text

__all__ = ["Confusion", "are_labels", "count_labels", "label_match", "macro_f1_of_counts", "tabulate_confusion"]

OTHER = "(other)"
"""The column of predictions that are none of the labels."""

MAX_LABELS = 1000
"""More different answers than this are texts, not labels."""

MAX_TABLE_LABELS = 50
"""A larger confusion table is not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """How often each label was predicted as which."""

    labels: tuple[str, ...]
    """The labels that occur as references, sorted: the rows."""
    columns: tuple[str, ...]
    """The labels again, then `(other)` for predictions that are none of them."""
    counts: tuple[tuple[int, ...], ...]
    """Rows of the table: `counts[i][j]` rows with the label `labels[i]` were predicted as `columns[j]`."""


def _canonical_label(text: str) -> str:
    return canonical_text(text).casefold()


def label_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 where the prediction is an accepted label, capitals and white space at the ends apart; else 0."""
    return best_of(prediction, references, lambda left, right: float(_canonical_label(left) == _canonical_label(right)))


def _pair_labels(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Return canonical predictions, and for each the accepted label: the one predicted, or else the first."""
    written = [_canonical_label(prediction) for prediction in predictions]
    expected = []
    for label, accepted in zip(written, references, strict=True):
        if not accepted:
            raise ValueError("a row without a reference cannot be scored")
        options = [_canonical_label(option) for option in accepted]
        expected.append(label if label in options else options[0])
    return written, expected


def are_labels(references: Sequence[Sequence[str]]) -> bool:
    """Whether the references of a set look like labels: a few short texts on one line that occur again and again."""
    first = {_canonical_label(accepted[0]) for accepted in references}
    short = all(len(label) <= 60 and "\n" not in label for label in first)
    return short and 2 <= len(first) <= min(MAX_TABLE_LABELS, len(references) // 2)


def tabulate_confusion(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Confusion:
    """Count predictions by label; capitals and white space at the ends do not count.

    Labels are shown as they are first written in the references.

    Args:
        predictions: One text a row.
        references: The accepted labels of each row; the first one, unless another one was predicted.

    Raises:
        ValueError: A row has no reference, or the lengths differ.
    """
    written, expected = _pair_labels(predictions, references)
    shown: dict[str, str] = {}
    for accepted in references:
        for option in accepted:
            shown.setdefault(_canonical_label(option), canonical_text(option))
    labels = sorted(set(expected))
    index = {label: position for position, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    np.add.at(table, ([index[label] for label in expected], [index.get(label, len(labels)) for label in written]), 1)
    names = tuple(shown[label] for label in labels)
    return Confusion(labels=names, columns=(*names, OTHER), counts=tuple(map(tuple, table.tolist())))


def count_labels(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the counts that macro-F1 is made of.

    Returns:
        (rows, 3 * labels): for each label that occurs as a reference whether the row is rightly predicted as it,
        predicted as it, and has it as reference.

    Raises:
        DataError: There are too many different references for labels.
        ValueError: A row has no reference, or the lengths differ.
    """
    written, expected = _pair_labels(predictions, references)
    labels = np.asarray(sorted(set(expected)), dtype=object)
    if len(labels) > MAX_LABELS:
        raise DataError(f"macro_f1 is for labels, and there are {len(labels)} different ones: more than {MAX_LABELS}")
    predicted = np.asarray(written, dtype=object)[:, None] == labels
    wanted = np.asarray(expected, dtype=object)[:, None] == labels
    return np.stack([predicted & wanted, predicted, wanted], axis=-1).reshape(len(written), -1).astype(np.float64)


def macro_f1_of_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean F1 over the labels from summed counts; a label that a resample lacks is left out of its mean.

    Args:
        counts: (..., 3 * labels), sums of the rows of `count_labels`.

    Returns:
        (...).
    """
    by_label = counts.reshape(*counts.shape[:-1], -1, 3)
    right, predicted, wanted = by_label[..., 0], by_label[..., 1], by_label[..., 2]
    f1 = 2 * right / np.maximum(predicted + wanted, 1)
    there = wanted > 0
    result: NDArray[np.float64] = np.where(there, f1, 0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)
    return result
