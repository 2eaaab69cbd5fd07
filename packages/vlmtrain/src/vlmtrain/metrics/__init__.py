"""Metrics for generated answers: per row, over a set with bootstrap intervals, and in pairs. No torch.

table → matching, edits, vqa, structured, captions, labels, bootstrap
"""

from __future__ import annotations

from vlmtrain.metrics.labels import Confusion, are_labels, tabulate_confusion
from vlmtrain.metrics.table import METRICS, Comparison, Metric, Score, compare, find_metrics, score, score_rows

__all__ = [
    "METRICS",
    "Comparison",
    "Confusion",
    "Metric",
    "Score",
    "are_labels",
    "compare",
    "find_metrics",
    "score",
    "score_rows",
    "tabulate_confusion",
]
