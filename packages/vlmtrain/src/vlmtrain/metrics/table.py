"""The metrics by name, and scoring a whole set with intervals."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmdata.errors import ConfigError, DataError
from vlmtrain.metrics.bootstrap import bootstrap_interval, bootstrap_values, paired_p_value
from vlmtrain.metrics.captions import chrf, chrf_of_counts, count_ngrams, rouge_l
from vlmtrain.metrics.edits import cer, character_edits, wer, word_edits
from vlmtrain.metrics.labels import count_labels, label_match, macro_f1_of_counts
from vlmtrain.metrics.matching import anls, exact_match, exact_match_casefold, relaxed_accuracy, token_f1
from vlmtrain.metrics.structured import json_field_accuracy
from vlmtrain.metrics.vqa import vqa_accuracy

__all__ = ["METRICS", "Comparison", "Metric", "Score", "compare", "find_metrics", "score", "score_rows"]

Counts = NDArray[np.float64]
References = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric: its value for a row, and how rows add up to the value of a set."""

    function: Callable[[str, Sequence[str]], float]
    """Value of one row: prediction, references."""
    higher_is_better: bool
    """False for error rates."""
    title: str
    """Name in tables and reports."""
    counts: Callable[[Sequence[str], References], Counts]
    """(rows, k) per-row counts that add up."""
    combine: Callable[[Counts], Counts]
    """(..., k) summed counts to (...) values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A metric's value on a set, with its bootstrap interval."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two sets of predictions on the same rows, with the paired bootstrap interval of `value - base`."""

    value: float
    base: float
    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided, of the difference being zero."""
    rows: int


def _ratio(counts: Counts) -> Counts:
    """Summed values over summed sizes; over sizes of zero the values themselves, as jiwer counts empty references."""
    return counts[..., 0] / np.where(counts[..., 1] > 0, counts[..., 1], 1)


def _mean_of(function: Callable[[str, Sequence[str]], float], title: str) -> Metric:
    """Make a metric whose value on a set is the mean over its rows."""

    def count(predictions: Sequence[str], references: References) -> Counts:
        rows = zip(predictions, references, strict=True)
        return np.asarray([(function(prediction, accepted), 1.0) for prediction, accepted in rows])

    return Metric(function=function, higher_is_better=True, title=title, counts=count, combine=_ratio)


def _rate_of(
    function: Callable[[str, Sequence[str]], float],
    edits: Callable[[str, Sequence[str]], tuple[int, int]],
    title: str,
) -> Metric:
    """Make an error rate: all edits of a set over the length of all its references."""

    def count(predictions: Sequence[str], references: References) -> Counts:
        rows = zip(predictions, references, strict=True)
        return np.asarray([edits(prediction, accepted) for prediction, accepted in rows], dtype=np.float64)

    return Metric(function=function, higher_is_better=False, title=title, counts=count, combine=_ratio)


def _count_all_ngrams(predictions: Sequence[str], references: References) -> Counts:
    return np.stack([count_ngrams(*row) for row in zip(predictions, references, strict=True)])


METRICS: dict[str, Metric] = {
    "exact_match": _mean_of(exact_match, "exact match"),
    "exact_match_casefold": _mean_of(exact_match_casefold, "exact match, capitals ignored"),
    "cer": _rate_of(cer, character_edits, "character error rate"),
    "wer": _rate_of(wer, word_edits, "word error rate"),
    "anls": _mean_of(anls, "ANLS (DocVQA)"),
    "relaxed_accuracy": _mean_of(relaxed_accuracy, "relaxed accuracy (ChartQA, 5 %)"),
    "vqa_accuracy": _mean_of(vqa_accuracy, "VQA accuracy"),
    "token_f1": _mean_of(token_f1, "token F1 (SQuAD)"),
    "json_fields": _mean_of(json_field_accuracy, "JSON fields right"),
    "rouge_l": _mean_of(rouge_l, "ROUGE-L"),
    "chrf": Metric(
        function=chrf, higher_is_better=True, title="chrF", counts=_count_all_ngrams, combine=chrf_of_counts
    ),
    "macro_f1": Metric(
        function=label_match, higher_is_better=True, title="macro-F1", counts=count_labels, combine=macro_f1_of_counts
    ),
}
"""Every metric by its name on the command line; all values lie between 0 and 1, but for error rates, which may pass 1.

The value of a set is the mean over rows, except: CER and WER are all edits over all reference lengths (as in jiwer),
chrF is computed from the n-gram counts of the whole set (as in sacrebleu), and macro-F1 is the mean F1 over the labels
that occur as references (its value for one row is whether the label is right).
"""


def find_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Return the named metrics, in the order named.

    Raises:
        ConfigError: A name is unknown; all such names at once, each with the nearest known one.
    """
    problems = []
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name.lower(), METRICS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problems.append(f"unknown metric {name!r}: {hint}known are {', '.join(METRICS)}")
    if problems:
        raise ConfigError(problems)
    return {name: METRICS[name] for name in names}


def _require_rows(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} rows")
    if not predictions:
        raise DataError("there is no row to score")
    bare = [index for index, accepted in enumerate(references) if not accepted]
    if bare:
        raise DataError(f"{len(bare)} rows have no reference to score against, the first is row {bare[0]}")


def score_rows(predictions: Sequence[str], references: References, metrics: Sequence[str]) -> list[dict[str, float]]:
    """Return each row's value of each named metric.

    Raises:
        ConfigError: A metric is unknown.
        DataError: The lengths differ, there are no rows, or a row has no reference.
    """
    chosen = find_metrics(metrics)
    _require_rows(predictions, references)
    return [
        {name: metric.function(prediction, accepted) for name, metric in chosen.items()}
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def score(
    predictions: Sequence[str],
    references: References,
    metrics: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Score]:
    """Score a set: each metric's value with its bootstrap interval over rows.

    Args:
        predictions: One text a row.
        references: All accepted answers of each row.
        metrics: Names from `METRICS`.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
        level: Share of the resampled values that the interval holds.

    Raises:
        ConfigError: A metric is unknown.
        DataError: The lengths differ, there are no rows, or a row has no reference.
    """
    chosen = find_metrics(metrics)
    _require_rows(predictions, references)
    scores = {}
    for name, metric in chosen.items():
        counts = metric.counts(predictions, references)
        values = bootstrap_values(counts, metric.combine, resamples=resamples, seed=seed)
        low, high = bootstrap_interval(values, level)
        scores[name] = Score(value=float(metric.combine(counts.sum(axis=0))), low=low, high=high, rows=len(predictions))
    return scores


def compare(
    predictions: Sequence[str],
    base_predictions: Sequence[str],
    references: References,
    metrics: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """Compare two sets of predictions for the same rows by a paired bootstrap: both are resampled alike.

    Arguments and errors as for `score`; `difference` is `predictions` minus `base_predictions`.
    """
    chosen = find_metrics(metrics)
    _require_rows(predictions, references)
    _require_rows(base_predictions, references)
    comparisons = {}
    for name, metric in chosen.items():
        both = [metric.counts(texts, references) for texts in (predictions, base_predictions)]
        value, base = (float(metric.combine(counts.sum(axis=0))) for counts in both)
        resampled = [bootstrap_values(counts, metric.combine, resamples=resamples, seed=seed) for counts in both]
        differences = resampled[0] - resampled[1]
        low, high = bootstrap_interval(differences, level)
        comparisons[name] = Comparison(
            value=value,
            base=base,
            difference=value - base,
            low=low,
            high=high,
            p_value=paired_p_value(differences),
            rows=len(predictions),
        )
    return comparisons
