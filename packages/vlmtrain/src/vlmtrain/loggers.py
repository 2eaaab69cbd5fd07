"""The programs that a run's log can be sent to: checked for before weights are loaded, then left to transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import MissingDependencyError

__all__ = ["check_loggers", "logger_arguments", "make_logger_callbacks"]


def check_loggers(names: Sequence[str]) -> None:
    """Makes sure that what `--report-to` names is installed.

    Raises:
        MissingDependencyError: Packages are missing; the message has the pip command for all of them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"report_to {', '.join(missing)}: not installed; pip install {' '.join(missing)}")


def logger_arguments(names: Sequence[str], run_name: str) -> dict[str, Any]:
    """Arguments of the trainer for the programs that know runs by name."""
    hosted = [name for name in names if name != "tensorboard"]
    return {"report_to": hosted or "none", "run_name": run_name}


def make_logger_callbacks(names: Sequence[str], folder: Path, *, first_step: int) -> list[Any]:
    """Callbacks that write into the run's own folder.

    Args:
        names: Of `--report-to`.
        folder: The run's folder.
        first_step: Where the run begins or goes on; what an earlier attempt logged from there on is taken back.
    """
    if "tensorboard" not in names:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    # tensorboard hides events from this step on; the first step of a run is 1
    purge = first_step + 1 if first_step else None
    return [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=purge))]
