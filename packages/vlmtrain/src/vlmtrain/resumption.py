"""Going on with a run: the checkpoint it goes on from, and what is done when no step is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmtrain.early_stop import is_out_of_patience
from vlmtrain.processes import is_main_process, say
from vlmtrain.run_config import MonitorConfig
from vlmtrain.run_folder import RunFolder, drop_lines_after

__all__ = ["find_checkpoint", "has_ended", "load_ended"]


def find_checkpoint(run: RunFolder) -> Path | None:
    """The newest checkpoint of a run, or None; the log of answers is cut back to it.

    Raises:
        DataError: Its state cannot be read.
    """
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        say("no checkpoint was saved yet: starting from the first step")
    else:
        say(f"resuming from {checkpoint.name}")
    if is_main_process():
        drop_lines_after(run.answers, run.step_of(checkpoint) if checkpoint else 0)
        if checkpoint is not None:
            try:
                run.adopt_checkpoint(checkpoint)
            except ValueError as error:
                raise DataError(f"{checkpoint}: trainer_state.json is broken; remove this checkpoint") from error
    return checkpoint


def has_ended(checkpoint: Path, steps: int, monitor: MonitorConfig) -> bool:
    """Whether no step is left after a checkpoint.

    Args:
        checkpoint: Its folder.
        steps: Steps of the whole run.
        monitor: Its patience may have run out before.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(
        state["global_step"] >= steps
        or is_out_of_patience(
            state["log_history"],
            f"eval_{monitor.best_metric}",
            higher_is_better=monitor.higher_is_better,
            patience=monitor.patience,
        )
    )


def load_ended(trainer: Any, checkpoint: Path) -> None:
    """Puts a trainer where it was after the last step: transformers itself would make one step more.

    Args:
        trainer: Fresh.
        checkpoint: After which `has_ended` found no step left.
    """
    from transformers.trainer_callback import TrainerState

    say("no step is left")
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer._load_from_checkpoint(trainer.state.best_model_checkpoint or str(checkpoint))
