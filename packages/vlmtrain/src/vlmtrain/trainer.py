"""The training loop: trl's SFTTrainer with our rows, optimizer groups, log and stop.

Both backends come through here; they differ in the class they derive from and in the collator they bring.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmtrain.backends import Backend
from vlmtrain.config import FitConfig
from vlmtrain.device import half_precision
from vlmtrain.layers import part_of
from vlmtrain.loaded import LoadedModel
from vlmtrain.rows import Rows
from vlmtrain.run_folder import RunFolder
from vlmtrain.stops import StopRequest

__all__ = ["Schedule", "make_trainer", "plan_schedule"]

_EVALUATIONS_A_RUN = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The run counted in optimizer steps."""

    steps: int
    """Of the whole run."""
    warmup_steps: int
    """In which the learning rate rises."""
    eval_steps: int
    """Between two evaluations and checkpoints."""
    steps_per_epoch: int
    """One pass over the rows."""


def plan_schedule(config: FitConfig, rows: int) -> Schedule:
    """Counts the steps of a run over `rows` training rows."""
    optimizer = config.optimizer
    steps_per_epoch = max(1, math.ceil(math.ceil(rows / optimizer.batch_size) / optimizer.grad_accum))
    steps = optimizer.max_steps or max(1, math.ceil(steps_per_epoch * optimizer.epochs))
    return Schedule(
        steps=steps,
        warmup_steps=math.ceil(optimizer.warmup * steps),
        eval_steps=config.run.eval_steps or max(1, steps // _EVALUATIONS_A_RUN),
        steps_per_epoch=steps_per_epoch,
    )


def make_trainer(
    backend: Backend,
    loaded: LoadedModel,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    train_rows: Rows,
    val_rows: Rows | None,
    *,
    config: FitConfig,
    schedule: Schedule,
    run: RunFolder,
    stop: StopRequest,
) -> Any:
    """Puts the trainer together.

    Args:
        backend: Whose trainer class and checkpointing to use.
        loaded: The model, with adapters or fully trainable.
        collate: Rows to a batch with labels.
        train_rows: Rows `{messages, images}`.
        val_rows: The same for the evaluation loss, or None.
        config: All settings.
        schedule: The steps.
        run: Where checkpoints and metrics go.
        stop: Is asked after each step whether to save and stop.

    Returns:
        A transformers Trainer.
    """
    from transformers import PrinterCallback
    from trl import SFTConfig

    arguments = _training_arguments(backend, loaded, config, schedule, run, has_val=val_rows is not None)
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    # Unsloth's SFTConfig drops arguments that it does not know, with a print that nobody reads.
    if unknown := sorted(set(arguments) - known):
        raise ConfigError(f"this version of trl does not know the training arguments {', '.join(unknown)}")
    settings = SFTConfig(**arguments)
    optimizer = _make_optimizer(loaded.model, settings, config)
    trainer = _with_loadable_checkpoints(backend.trainer_class())(
        model=loaded.model,
        args=settings,
        data_collator=collate,
        train_dataset=train_rows,
        eval_dataset=val_rows,
        processing_class=loaded.processor,
        optimizers=(optimizer, None),
        callbacks=[_make_callback(run.metrics, stop)],
    )
    # It prints dictionaries where there is no terminal; ours prints a line.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _training_arguments(
    backend: Backend, loaded: LoadedModel, config: FitConfig, schedule: Schedule, run: RunFolder, *, has_val: bool
) -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    optimizer = config.optimizer
    # On a GPU 32-bit weights still multiply in 16 bit; a CPU gains nothing from that.
    mixed = half_precision() if on_gpu else loaded.dtype
    workers = config.data.workers if config.data.workers is not None else 4 if on_gpu else 0
    return {
        "output_dir": str(run.checkpoints),
        "max_steps": schedule.steps,
        "per_device_train_batch_size": optimizer.batch_size,
        "per_device_eval_batch_size": optimizer.batch_size,
        "gradient_accumulation_steps": optimizer.grad_accum,
        "learning_rate": config.lr,
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "optim": optimizer_name(config),
        "bf16": mixed == torch.bfloat16,
        "fp16": mixed == torch.float16,
        "use_cpu": not on_gpu,
        "seed": optimizer.seed,
        "data_seed": optimizer.seed,
        "logging_steps": config.run.log_steps,
        "logging_first_step": True,
        "eval_strategy": "steps" if has_val else "no",
        "eval_steps": schedule.eval_steps,
        # Logits of a whole vocabulary a token would fill the memory; the loss is all that is needed.
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": schedule.eval_steps,
        "save_total_limit": config.run.keep_checkpoints + 1 if has_val else config.run.keep_checkpoints,
        "load_best_model_at_end": has_val,
        "metric_for_best_model": "eval_loss" if has_val else None,
        "greater_is_better": False if has_val else None,
        "dataloader_num_workers": workers,
        "dataloader_pin_memory": on_gpu,
        "dataloader_persistent_workers": workers > 0,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # Rows are never cut; those above the limit were refused or left out before.
        "max_length": None,
        "packing": False,
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        **backend.checkpointing_arguments(config),
    }


def optimizer_name(config: FitConfig) -> str:
    """The optimizer behind `auto`: 8-bit AdamW keeps its moments in a quarter of the memory, but needs a GPU."""
    import torch

    if config.optimizer.optimizer != "auto":
        return config.optimizer.optimizer
    return "adamw_8bit" if torch.cuda.is_available() else "adamw_torch"


def _with_loadable_checkpoints(base: type) -> type:
    """A trainer whose checkpoints of a whole model are found again when it is resumed or its best one is loaded.

    transformers writes weights under the names that a model has on the hub, and a trainer reads them under those that
    it has in memory. For vision-language models the two differ since its fifth version: nothing is loaded, in silence.
    """
    from transformers import PreTrainedModel
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    class LoadableTrainer(base):  # type: ignore[misc]  # its class is known when it runs
        """Writes checkpoints, but not the result, under the names in memory."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            is_checkpoint = Path(output_dir or self.args.output_dir).name.startswith(PREFIX_CHECKPOINT_DIR)
            if not is_checkpoint or not isinstance(self.model, PreTrainedModel):
                super()._save(output_dir, state_dict)
                return
            write = self.model.save_pretrained
            self.model.save_pretrained = functools.partial(write, save_original_format=False)
            try:
                super()._save(output_dir, state_dict)
            finally:
                self.model.save_pretrained = write

        def _issue_warnings_after_load(self, load_result: Any) -> None:
            # tied weights are stored once
            missing = set(load_result.missing_keys) - set(getattr(self.model, "all_tied_weights_keys", None) or ())
            if missing or load_result.unexpected_keys:
                raise DataError(
                    f"the checkpoint is not one of this model: {len(missing)} of its weights are not in it, and "
                    f"{len(load_result.unexpected_keys)} of those in it are not the model's"
                )
            super()._issue_warnings_after_load(load_result)

    return LoadableTrainer


def _make_optimizer(model: Any, settings: Any, config: FitConfig) -> Any:
    """The optimizer with groups by learning rate (vision tower or not) and weight decay (matrices or not)."""
    from transformers import Trainer

    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = config.vision_lr if part_of(name) == "vision" else config.lr
        # Biases and normalisation gains are not shrunk.
        decay = config.optimizer.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(settings, model)
    return kind(
        [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()], **arguments
    )


def _make_callback(metrics: Path, stop: StopRequest) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped here
        """Writes the log as it grows, and turns a stop request into a checkpoint."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A resumed run repeats the steps after its checkpoint, and sums up once.
            lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
            logs = [(line, json.loads(line)) for line in lines]
            kept = [line for line, log in logs if log["step"] <= state.global_step and "train_runtime" not in log]
            metrics.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            if _is_worth_a_line(logs, state.global_step, state.max_steps):
                print(_describe_log(logs, state.global_step, state.max_steps), flush=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if stop.signal is not None:
                control.should_save = True
                control.should_training_stop = True

    return Progress()


def _is_worth_a_line(logs: dict[str, Any], step: int, steps: int) -> bool:
    """Every evaluation, and some fifty losses a run; metrics.jsonl has them all."""
    return "eval_loss" in logs or ("loss" in logs and (step in (1, steps) or step % max(1, steps // 50) == 0))


def _describe_log(logs: dict[str, Any], step: int, steps: int) -> str:
    if "eval_loss" in logs:
        return f"step {step}/{steps}: eval loss {logs['eval_loss']:.4f}"
    rest = f"lr {logs['learning_rate']:.2e}, gradient norm {logs['grad_norm']:.2f}"
    return f"step {step}/{steps}: loss {logs['loss']:.4f}, {rest}"
