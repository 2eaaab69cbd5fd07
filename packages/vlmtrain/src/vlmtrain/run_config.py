"""Settings of where a run writes, how often, and by what it is watched and judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vlmdata.errors import ConfigError
from vlmdata.options import unknown_name
from vlmtrain.value_checks import not_positive, split_names

__all__ = ["LOGGERS", "LOSS_METRIC", "MonitorConfig", "RunConfig"]

LOSS_METRIC = "loss"
"""The name of the evaluation loss among the metrics that a checkpoint may be chosen by."""

LOGGERS = ("tensorboard", "wandb", "trackio")
"""The programs that a run's log can be sent to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where the run writes, on what it runs, and how often it evaluates."""

    out: Path
    """Folder of the run."""
    gpus: int = 1
    """GPUs of this machine to train on; the global batch is --batch-size × --grad-accum × --gpus. Without a GPU, as
    many processes on the CPU."""
    eval_steps: int | None = None
    """Optimizer steps between two evaluations and checkpoints. Unset: a tenth of the run."""
    eval_rows: int = 512
    """Most rows of the val split that the evaluation loss looks at, drawn once by the seed."""
    keep_checkpoints: int = 2
    """Checkpoints that stay on the disk, besides the best one."""
    log_steps: int = 1
    """Optimizer steps between two lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        names = ("gpus", "eval_steps", "eval_rows", "keep_checkpoints", "log_steps")
        if problems := not_positive(self, *names):
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorConfig:
    """By what a run is watched and judged while it trains."""

    eval_metrics: tuple[str, ...] = ()
    """Metrics of answers to val rows, at each evaluation: names with commas between, or the option again for more.
    [default: none, the loss alone]"""
    eval_samples: int = 64
    """Most val rows that are answered for --eval-metrics, drawn once by the seed."""
    best_metric: str = LOSS_METRIC
    """What the best checkpoint is chosen by: loss, or one of --eval-metrics."""
    patience: int | None = None
    """Evaluations without a better --best-metric after which the run ends early. Unset: never."""
    report_to: tuple[str, ...] = ()
    """Programs that the log is sent to as well: tensorboard, wandb, trackio. [default: none]"""

    report: bool = True
    """Write run.html at the end: curves, settings, and answers to some val rows with their pictures."""
    report_samples: int = 8
    """Val rows that the result answers for run.html, where --eval-metrics has none answered."""

    def __post_init__(self) -> None:
        """Takes names apart at commas, and checks the values.

        Raises:
            ConfigError: A value is out of range, or a metric is unknown or not computed.
        """
        for field in ("eval_metrics", "report_to"):
            object.__setattr__(self, field, split_names(getattr(self, field)))
        problems = not_positive(self, "eval_samples", "patience", "report_samples")
        problems.extend(
            f"report_to: {unknown_name('logger', name, LOGGERS)} (known are {', '.join(LOGGERS)})"
            for name in self.report_to
            if name not in LOGGERS
        )
        if self.eval_metrics:
            # the table needs numpy, which --help does not wait for
            from vlmtrain.metrics import find_metrics

            try:
                find_metrics(self.eval_metrics)
            except ConfigError as error:
                problems.extend(f"eval_metrics: {problem}" for problem in error.problems)
        if self.best_metric not in (LOSS_METRIC, *self.eval_metrics):
            known = ", ".join((LOSS_METRIC, *self.eval_metrics))
            problems.append(
                f"best_metric {self.best_metric!r} is not computed in the run: choose from {known}, "
                "or add it to --eval-metrics"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def higher_is_better(self) -> bool:
        """The direction of `best_metric`."""
        if self.best_metric == LOSS_METRIC:
            return False
        from vlmtrain.metrics import METRICS

        return METRICS[self.best_metric].higher_is_better

    @property
    def asks_for_val(self) -> tuple[str, ...]:
        """The options that were set and need a val split."""
        names = ("eval_metrics", "best_metric", "patience")
        defaults = {field.name: field.default for field in dataclasses.fields(MonitorConfig)}
        return tuple(name for name in names if getattr(self, name) != defaults[name])
