"""`vlmtrain fit`: from a built folder and a model to a run folder whose weights are the best checkpoint's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ResourceError, ToolkitError
from vlmdata.shards import BuiltFolder, open_folder
from vlmtrain.backends import Backend, choose_backend
from vlmtrain.chat import ChatFormat
from vlmtrain.config import FitConfig
from vlmtrain.environment import describe_environment
from vlmtrain.layers import count_parameters
from vlmtrain.loaded import LoadedModel
from vlmtrain.precision import choose_precision
from vlmtrain.preflight import CheckedSplit, check_collator, check_split, show_masked_row
from vlmtrain.processors import load_chat_format, load_processor, save_processor
from vlmtrain.rows import sample_indices
from vlmtrain.run_folder import RunFolder, check_run_folder, open_run_folder
from vlmtrain.source import ModelSource, find_model
from vlmtrain.stops import StopRequest
from vlmtrain.template_completion import describe_completion
from vlmtrain.trainer import Schedule, make_trainer, optimizer_name, plan_schedule

__all__ = ["Prepared", "Stopped", "fit", "prepare"]

_FEW_STEPS = 100

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Stopped(ToolkitError):
    """A signal ended the run after it saved a checkpoint."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that is known before weights are loaded: the set has passed its checks."""

    folder: BuiltFolder
    source: ModelSource
    backend: Backend
    processor: Any
    chat: ChatFormat
    train: CheckedSplit
    val: CheckedSplit | None

    @property
    def max_length(self) -> int:
        """Tokens of the longest row of either split, or the limit that was set."""
        return max(split.max_length for split in (self.train, self.val) if split is not None)


def prepare(config: FitConfig) -> Prepared:
    """Opens the set and the model's processor, chooses the backend, and checks every row.

    Args:
        config: The run's settings.

    Raises:
        ToolkitError: Whatever would make the run fail or learn the wrong thing.
    """
    folder = open_folder(config.data.data)
    train_split = folder.split(config.data.train_split)
    source = find_model(config.model.model, revision=config.model.revision)
    backend, reason = choose_backend(config.model.backend)
    say(f"backend: {backend.NAME} ({reason})")
    say(f"model: {source.name} (family {source.family.name if source.family else 'unknown'})")
    processor = load_processor(source, trust_remote_code=config.model.trust_remote_code)
    if completion := describe_completion(processor):
        say(completion)
    chat = load_chat_format(
        source,
        processor,
        instruction_part=config.data.instruction_part,
        response_part=config.data.response_part,
    )
    train = check_split(train_split, config.data, chat, source.family)
    say(train.describe())
    val = None
    if config.data.val_split in folder.splits and folder.splits[config.data.val_split].num_rows:
        val = check_split(folder.split(config.data.val_split), config.data, chat, source.family)
        say(val.describe())
    else:
        say(f"no rows in a split {config.data.val_split!r}: no evaluation loss, the last checkpoint is kept")
    return Prepared(folder=folder, source=source, backend=backend, processor=processor, chat=chat, train=train, val=val)


def fit(config: FitConfig, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """Trains.

    Args:
        config: The run's settings.
        resume: Go on from the last checkpoint of the run's folder.
        overwrite: Throw an earlier run in that folder away.

    Returns:
        The finished run's folder.

    Raises:
        Stopped: A signal ended the run; a checkpoint is saved.
        ToolkitError: See `prepare`; or the GPU's memory or the disk gave out.
    """
    started = time.monotonic()
    with StopRequest() as stop:
        check_run_folder(config, resume=resume, overwrite=overwrite)
        prepared = prepare(config)
        loaded = _load_for_training(config, prepared)
        schedule = plan_schedule(config, len(prepared.train.rows))
        _say_schedule(config, schedule)
        collate = _make_collator(config, prepared, loaded)
        # Nothing is written, and no earlier run thrown away, before everything that can be refused has passed.
        run = open_run_folder(config, resume=resume, overwrite=overwrite)
        trainer = _make_trainer(config, prepared, loaded, collate, schedule, run, stop)
        checkpoint = run.last_checkpoint() if resume else None
        if checkpoint is not None:
            run.adopt_checkpoint(checkpoint)
        if resume:
            say(
                f"resuming from {checkpoint.name}"
                if checkpoint
                else "no checkpoint was saved yet: starting from the first step"
            )
        _train(trainer, checkpoint)
        if stop.signal is not None:
            raise Stopped(
                f"stopped by signal {stop.signal} after step {trainer.state.global_step} of {schedule.steps}; "
                "a checkpoint is saved, --resume goes on from it",
                stop.exit_code,
            )
        _save_weights(trainer, loaded, run)
        run.finish(_report(config, prepared, loaded, schedule, trainer, time.monotonic() - started, run))
    say(f"done: {run.weights}")
    return run


def say(line: str) -> None:
    """Prints a line at once: what was chosen must be seen before the wait."""
    print(line, flush=True)


def _load_for_training(config: FitConfig, prepared: Prepared) -> LoadedModel:
    precision = choose_precision(config.model.load_in, method=config.adapter.method, config=prepared.source.config)
    say(f"weights in {precision.load_in} ({precision.reason})")
    loaded = prepared.backend.load_model(
        prepared.source,
        prepared.processor,
        load_in=precision.load_in,
        max_length=prepared.max_length,
        method=config.adapter.method,
        checkpointing=config.optimizer.gradient_checkpointing,
        trust_remote_code=config.model.trust_remote_code,
    )
    if config.adapter.method == "full":
        loaded.model.requires_grad_(True)
    elif prepared.source.adapter is None:
        prepared.backend.add_adapter(
            loaded,
            config.adapter,
            checkpointing=config.optimizer.gradient_checkpointing,
            seed=config.optimizer.seed,
        )
    else:
        say(f"going on with the adapter in {prepared.source.adapter}; --r, --alpha and the finetune flags do not apply")
    _say_parameters(loaded)
    return loaded


def _make_collator(config: FitConfig, prepared: Prepared, loaded: LoadedModel) -> Collator:
    """The backend's collator, after it has shown that it does with some rows what the checks foresaw."""
    last_turn_only = config.data.train_on == "last"
    # Padding goes to the right in training, so that positions begin at the first token in every backend.
    prepared.processor.tokenizer.padding_side = "right"
    collate = prepared.backend.make_collator(
        loaded, prepared.chat, max_length=prepared.max_length, last_turn_only=last_turn_only
    )
    check_collator(collate, prepared.train, prepared.chat, last_turn_only=last_turn_only)
    batch = collate([prepared.train.rows[0]])
    shown = show_masked_row(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), prepared.chat)
    say(f"first row, with what carries loss between ⟦ and ⟧:\n{shown}")
    return collate


def _make_trainer(
    config: FitConfig,
    prepared: Prepared,
    loaded: LoadedModel,
    collate: Collator,
    schedule: Schedule,
    run: RunFolder,
    stop: StopRequest,
) -> Any:
    val_rows = None
    if prepared.val is not None:
        chosen = sample_indices(len(prepared.val.rows), config.run.eval_rows, config.optimizer.seed)
        val_rows = prepared.val.rows.select(chosen)
    return make_trainer(
        prepared.backend,
        loaded,
        collate,
        prepared.train.rows,
        val_rows,
        config=config,
        schedule=schedule,
        run=run,
        stop=stop,
    )


def _train(trainer: Any, checkpoint: Path | None) -> None:
    import torch

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            "the GPU's memory ran out: halve --batch-size and double --grad-accum, or try --load-in 4bit"
        ) from error
    except OSError as error:
        raise ResourceError(f"writing the run failed: {error.strerror or error}") from error


def _save_weights(trainer: Any, loaded: LoadedModel, run: RunFolder) -> None:
    try:
        trainer.save_model(str(run.weights))
        save_processor(loaded.source, run.weights)
    except OSError as error:
        raise ResourceError(f"{run.weights}: cannot be written: {error.strerror or error}") from error


def _say_parameters(loaded: LoadedModel) -> None:
    counts = count_parameters(loaded.model.named_parameters())
    say("trainable parameters:")
    for part, (trainable, total) in sorted(counts.items()):
        say(f"  {part:<10} {trainable:>14,} of {total:,}")


def _say_schedule(config: FitConfig, schedule: Schedule) -> None:
    batch = config.optimizer.batch_size * config.optimizer.grad_accum
    say(
        f"{schedule.steps} steps of {batch} rows ({schedule.steps_per_epoch} an epoch), "
        f"{schedule.warmup_steps} of them warm-up; {optimizer_name(config)}, "
        f"lr {config.lr:g} (vision tower {config.vision_lr:g})"
    )
    if schedule.steps < _FEW_STEPS:
        say(
            f"warning: {schedule.steps} steps are few; "
            f"under {_FEW_STEPS} a model seldom learns more than the form of the answers"
        )


def _report(
    config: FitConfig,
    prepared: Prepared,
    loaded: LoadedModel,
    schedule: Schedule,
    trainer: Any,
    seconds: float,
    run: RunFolder,
) -> dict[str, Any]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "config": config.flat(),
        "weights": run.weights.name,
        "base": {"name": prepared.source.name, "revision": prepared.source.revision},
        "family": prepared.source.family.name if prepared.source.family else None,
        "backend": prepared.backend.NAME,
        "load_in": loaded.load_in,
        "data": str(prepared.folder.path.resolve()),
        "data_fingerprint": prepared.folder.manifest.fingerprint,
        "rows": {"train": len(prepared.train.rows), "val": len(prepared.val.rows) if prepared.val else 0},
        "max_length": prepared.max_length,
        "steps": schedule.steps,
        # transformers counts the steps before a resumption, but not their losses
        "train_loss": statistics.fmean(losses) if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_eval_loss": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "seconds": round(seconds, 1),
        "environment": describe_environment(),
    }
