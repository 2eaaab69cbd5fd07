"""The training loop: trl's SFTTrainer with our rows, optimizer groups, log and stop.

Both backends come through here; they differ in the class they derive from and in the collator they bring.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.backends import Backend
from vlmtrain.chat import image_token_ids
from vlmtrain.checkpoints import with_loadable_checkpoints, with_whole_checkpoints
from vlmtrain.config import FitConfig
from vlmtrain.device import half_precision
from vlmtrain.divergence import make_divergence_callback
from vlmtrain.early_stop import make_early_stop
from vlmtrain.layers import part_of
from vlmtrain.loaded import LoadedModel
from vlmtrain.loggers import logger_arguments, make_logger_callbacks
from vlmtrain.metrics import METRICS
from vlmtrain.out_of_memory import with_smaller_pieces
from vlmtrain.processes import agree_on_largest, is_main_process, process_count, say
from vlmtrain.rows import Rows
from vlmtrain.run_folder import RunFolder, drop_lines_after
from vlmtrain.speed.trainer import Arrangement, arrange_trainer
from vlmtrain.stops import StopRequest
from vlmtrain.val_answers import ValAnswers, with_answer_metrics
from vlmtrain.val_loss import with_token_mean_loss

__all__ = ["Schedule", "make_trainer", "optimizer_name", "plan_schedule"]

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


def plan_schedule(config: FitConfig, steps_per_epoch: int) -> Schedule:
    """Counts the steps of a run, of which an epoch has so many."""
    steps = config.optimizer.count_steps(steps_per_epoch)
    return Schedule(
        steps=steps,
        warmup_steps=math.ceil(config.optimizer.warmup * steps),
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
    arrangement: Arrangement,
    schedule: Schedule,
    run: RunFolder,
    stop: StopRequest,
    val_answers: ValAnswers | None = None,
    first_step: int = 0,
    longest: Callable[[], dict[str, Any]] | None = None,
) -> Any:
    """Puts the trainer together.

    Args:
        backend: Whose trainer class and checkpointing to use.
        loaded: The model, with adapters or fully trainable.
        collate: Rows to a batch with labels.
        train_rows: Rows `{messages, images}`.
        val_rows: The same for the evaluation loss, or None.
        config: All settings.
        arrangement: How steps are run.
        schedule: The steps.
        run: Where checkpoints and metrics go.
        stop: Is asked after each step whether to save and stop.
        val_answers: Val rows to answer at each evaluation, or None.
        first_step: Step of the checkpoint that the run goes on from, or 0.
        longest: Makes the micro-batch of the longest rows, to be tried before the first step, or None.

    Returns:
        A transformers Trainer.
    """
    from transformers import PrinterCallback
    from trl import SFTConfig

    arguments = _training_arguments(backend, loaded, config, arrangement, schedule, run, has_val=val_rows is not None)
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    # Unsloth's SFTConfig drops arguments that it does not know, with a print that nobody reads.
    if unknown := sorted(set(arguments) - known):
        raise ConfigError(f"this version of trl does not know the training arguments {', '.join(unknown)}")
    settings = SFTConfig(**arguments)
    # One process takes one GPU; transformers would spread it over all that it sees.
    settings._n_gpu = min(settings.n_gpu, 1)
    if settings.device.type == "cpu":
        # A process of a group names it cpu:0, to which torch loads no file of a checkpoint.
        settings.__dict__["_setup_devices"] = type(settings.device)("cpu")
    callbacks = [_make_callback(run.metrics, stop), make_divergence_callback(say)]
    callbacks += _early_stop(config, has_val=val_rows is not None)
    if is_main_process():
        callbacks += make_logger_callbacks(config.monitor.report_to, run.path, first_step=first_step)
    optimizer = _make_optimizer(loaded.model, settings, config)
    if config.speed.profile_steps and is_main_process():
        from vlmtrain.speed.profile import StepProfile

        callbacks.append(StepProfile(run.path / "profile.txt", steps=config.speed.profile_steps))
    kind = with_token_mean_loss(with_whole_checkpoints(with_loadable_checkpoints(backend.trainer_class())))
    kind = with_answer_metrics(arrange_trainer(kind, arrangement), val_answers)
    # outermost: each piece attends within its own rows, and has its own layers recomputed
    image_ids = image_token_ids(loaded.processor.tokenizer)
    trainer = with_smaller_pieces(kind, image_ids, longest, arrangement.add_vision_inputs)(
        model=loaded.model,
        args=settings,
        data_collator=collate,
        train_dataset=train_rows,
        eval_dataset=val_rows,
        processing_class=loaded.processor,
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )
    # It prints dictionaries where there is no terminal; ours prints a line.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _training_arguments(
    backend: Backend,
    loaded: LoadedModel,
    config: FitConfig,
    arrangement: Arrangement,
    schedule: Schedule,
    run: RunFolder,
    *,
    has_val: bool,
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
        "per_device_train_batch_size": arrangement.rows,
        "per_device_eval_batch_size": optimizer.batch_size,
        "gradient_accumulation_steps": arrangement.passes,
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
        # a loss that is no number would be logged as the mean of those before
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if has_val else "no",
        "eval_steps": schedule.eval_steps,
        # Logits of a whole vocabulary a token would fill the memory; the loss is all that is needed.
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": schedule.eval_steps,
        "save_total_limit": config.run.keep_checkpoints + 1 if has_val else config.run.keep_checkpoints,
        "load_best_model_at_end": has_val,
        "metric_for_best_model": f"eval_{config.monitor.best_metric}" if has_val else None,
        "greater_is_better": config.monitor.higher_is_better if has_val else None,
        "dataloader_num_workers": workers,
        "dataloader_pin_memory": on_gpu,
        "dataloader_persistent_workers": workers > 0,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # Rows are never cut; those above the limit were refused or left out before.
        "max_length": None,
        "packing": False,
        "disable_tqdm": not sys.stderr.isatty(),
        **_group_arguments(on_gpu=on_gpu, layers_may_idle=arrangement.layers_may_idle),
        **logger_arguments(config.monitor.report_to, run.path.name),
        # layers that are switched one by one must not be switched all at once
        **({"gradient_checkpointing": False} if arrangement.switches else backend.checkpointing_arguments(config)),
    }


def _group_arguments(*, on_gpu: bool, layers_may_idle: bool) -> dict[str, Any]:
    """Of several processes, the loss is divided by the tokens of all."""
    if process_count() == 1:
        return {}
    return {
        "average_tokens_across_devices": True,
        "ddp_backend": "nccl" if on_gpu else "gloo",
        # walks through the whole graph of every step
        "ddp_find_unused_parameters": layers_may_idle,
    }


def optimizer_name(config: FitConfig) -> str:
    """The optimizer that the run has on this machine."""
    import torch

    return config.optimizer.resolve_optimizer(config.adapter.method, on_gpu=torch.cuda.is_available())


def _make_optimizer(model: Any, settings: Any, config: FitConfig) -> Any:
    """The optimizer with groups by learning rate (vision tower or not) and weight decay (matrices or not)."""
    from transformers import Trainer

    rates = {"vision": config.vision_lr, "connector": config.connector_lr}
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = rates.get(part_of(name), config.lr)
        # Biases and normalisation gains are not shrunk.
        decay = config.optimizer.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(settings, model)
    return kind(
        [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()], **arguments
    )


def _early_stop(config: FitConfig, *, has_val: bool) -> list[Any]:
    monitor = config.monitor
    if monitor.patience is None or not has_val:
        return []
    key = f"eval_{monitor.best_metric}"
    return [make_early_stop(key, higher_is_better=monitor.higher_is_better, patience=monitor.patience)]


def _make_callback(metrics: Path, stop: StopRequest) -> Any:
    from transformers import TrainerCallback

    began = time.monotonic()

    class Progress(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped here
        """Writes the log as it grows, and turns a stop request into a checkpoint."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A resumed run repeats the steps after its checkpoint, and sums up once.
            if is_main_process():
                drop_lines_after(metrics, state.global_step, without="train_runtime")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if not is_main_process():
                return
            line = {"step": state.global_step, **logs, "seconds": round(time.monotonic() - began, 3)}
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if _is_worth_a_line(logs, state.global_step, state.max_steps):
                print(_describe_log(logs, state.global_step, state.max_steps), flush=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # a signal may reach the processes of a group in different steps
            stop.signal = agree_on_largest(stop.signal or 0) or None
            if stop.signal is not None:
                control.should_save = True
                control.should_training_stop = True

    return Progress()


def _is_worth_a_line(logs: dict[str, Any], step: int, steps: int) -> bool:
    """Every evaluation, and some fifty losses a run; metrics.jsonl has them all."""
    return "eval_loss" in logs or ("loss" in logs and (step in (1, steps) or step % max(1, steps // 50) == 0))


def _describe_log(logs: dict[str, Any], step: int, steps: int) -> str:
    if "eval_loss" in logs:
        scores = {name.removeprefix("eval_"): value for name, value in logs.items()}
        metrics = [f", {name} {value:.3f}" for name, value in scores.items() if name in METRICS]
        return f"step {step}/{steps}: eval loss {logs['eval_loss']:.4f}" + "".join(metrics)
    rest = f"lr {logs['learning_rate']:.2e}, gradient norm {logs['grad_norm']:.2f}"
    return f"step {step}/{steps}: loss {logs['loss']:.4f}, {rest}"
