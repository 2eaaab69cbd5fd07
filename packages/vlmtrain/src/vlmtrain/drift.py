"""How far an export's answers are from the run's, when the run was trained in another precision than it is used in.

After 4-bit training the adapter has learned on rounded weights; merged into the 16-bit base it stands on others. What
that costs or brings is the difference of a metric on held-out rows, paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmdata.shards import Split
from vlmtrain.held_out import EvalRow, Questions, answer_limit, read_eval_rows
from vlmtrain.inference import AnsweringModel
from vlmtrain.metrics import compare

__all__ = ["DriftSet", "compare_answers", "describe_drift", "open_drift_set"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSet:
    """The rows that both answer."""

    split: Split
    rows: list[EvalRow]

    def answer(self, model: AnsweringModel) -> list[str]:
        """A model's answers, `(N,)`."""
        return model.answer(Questions(self.split, self.rows), max_new_tokens=answer_limit(model, self.rows))


def open_drift_set(split: Split, *, rows: int) -> DriftSet:
    """Draws the rows."""
    return DriftSet(split=split, rows=read_eval_rows(split, limit=rows, seed=0))


def compare_answers(
    drift_set: DriftSet,
    *,
    exported: Sequence[str],
    trained: Sequence[str],
    exported_in: str,
    trained_in: str,
    metrics: Sequence[str],
) -> dict[str, Any]:
    """The difference of each metric, export minus run, with its interval.

    Args:
        drift_set: The rows.
        exported: `(N,)` the export's answers.
        trained: `(N,)` the run's answers in the precision it was trained in.
        exported_in: Precision of the first.
        trained_in: Precision of the second.
        metrics: Names of metrics.
    """
    references = [row.references for row in drift_set.rows]
    paired = compare(exported, trained, references, metrics)
    same = sum(left == right for left, right in zip(exported, trained, strict=True))
    return {
        "split": drift_set.split.name,
        "rows": len(references),
        "exported_in": exported_in,
        "trained_in": trained_in,
        "same_answers": same,
        "metrics": {name: asdict(value) for name, value in paired.items()},
    }


def describe_drift(drift: dict[str, Any]) -> list[str]:
    """A line for the whole and one for each metric."""
    lines = [
        f"drift to the run in {drift['trained_in']}: {drift['same_answers']} of {drift['rows']} answers of "
        f"{drift['split']} are the same"
    ]
    for name, cell in drift["metrics"].items():
        lines.append(
            f"  {name}: {cell['value']:.3f} in {drift['exported_in']}, {cell['base']:.3f} in {drift['trained_in']}, "
            f"difference {cell['difference']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"
        )
    return lines
