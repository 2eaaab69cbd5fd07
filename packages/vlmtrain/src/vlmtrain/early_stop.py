"""Ending a run early: when a number of evaluations in a row brought nothing better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["evaluations_since_best", "is_out_of_patience", "make_early_stop"]


def evaluations_since_best(values: Sequence[float], *, higher_is_better: bool) -> int:
    """How many evaluations came after the best one; of equally good ones the first counts.

    Args:
        values: Of all evaluations so far, in order.
        higher_is_better: The metric's direction.
    """
    if not values:
        return 0
    best = max(values) if higher_is_better else min(values)
    return len(values) - 1 - list(values).index(best)


def is_out_of_patience(
    log: Sequence[dict[str, Any]], key: str, *, higher_is_better: bool, patience: int | None
) -> bool:
    """Whether a run with this log ends here.

    Args:
        log: `log_history` of a trainer's state.
        key: Of the metric, such as `eval_loss`.
        higher_is_better: The metric's direction.
        patience: Evaluations without a better value, or None to never end.
    """
    values = [entry[key] for entry in log if key in entry]
    return patience is not None and evaluations_since_best(values, higher_is_better=higher_is_better) >= patience


def make_early_stop(key: str, *, higher_is_better: bool, patience: int) -> Any:
    """A trainer's callback. Its state is the trainer's log alone, so that a resumed run ends where a whole one does."""
    from transformers import TrainerCallback

    class EarlyStop(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped here
        """Looks at the log after each evaluation."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if is_out_of_patience(state.log_history, key, higher_is_better=higher_is_better, patience=patience):
                control.should_training_stop = True
                if state.is_world_process_zero:
                    print(f"ending early: {patience} evaluations in a row without a better {key}", flush=True)

    return EarlyStop()
