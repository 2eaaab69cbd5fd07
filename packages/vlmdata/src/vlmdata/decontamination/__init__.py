"""Pictures of evaluation sets, which training rows must not show: read from whatever they come in, or from hashes."""

from __future__ import annotations

from vlmdata.decontamination.evaluation_sets import EvaluationSet, open_evaluation_sets
from vlmdata.decontamination.hash_list import write_hash_list
from vlmdata.decontamination.preparation import Evaluation, differing_options, pixel_options, prepare_evaluation

__all__ = [
    "Evaluation",
    "EvaluationSet",
    "differing_options",
    "open_evaluation_sets",
    "pixel_options",
    "prepare_evaluation",
    "write_hash_list",
]
