"""`vlmtrain fit`: from a built folder and a model to a run folder whose weights are the best checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmdata.errors import ResourceError
from vlmtrain.arrangement import arrange, plans_memory
from vlmtrain.base_identity import identify_base, pin_base
from vlmtrain.config import FitConfig
from vlmtrain.device import limit_memory, require_gpu
from vlmtrain.lengths import heaviest_step
from vlmtrain.loaded import LoadedModel
from vlmtrain.loftq import begin_with_rounding, require_unrounded_base
from vlmtrain.loggers import check_loggers
from vlmtrain.precision import choose_precision
from vlmtrain.preflight import CheckedSplit, check_collator, show_masked_row
from vlmtrain.preparation import Prepared, prepare
from vlmtrain.processes import claim_device, is_main_process, leave_group, process_count, say
from vlmtrain.processors import save_processor
from vlmtrain.resumption import find_checkpoint, has_ended, load_ended
from vlmtrain.rows import Rows, sample_indices
from vlmtrain.run_folder import RunFolder, check_run_folder, open_run_folder
from vlmtrain.run_page import write_run_page
from vlmtrain.run_summary import Laps, note_inputs, summarise
from vlmtrain.speed.rounding import RoundingCollator, prefers_cudnn
from vlmtrain.speed.trainer import Arrangement
from vlmtrain.stops import Stopped, StopRequest
from vlmtrain.trainable import describe_trainable, list_trainable, widen_trained_copies
from vlmtrain.trainer import Schedule, make_trainer, optimizer_name, plan_schedule
from vlmtrain.val_answers import ValAnswers
from vlmtrain.whole_folders import as_resource_error, is_write_failure, whole_folder

__all__ = ["Stopped", "fit"]

_FEW_STEPS = 100

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


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
    laps = Laps()
    with StopRequest() as stop:
        check_loggers(config.monitor.report_to)
        if config.speed.profile_steps:
            require_gpu("--profile-steps")
        claim_device(config.run.gpus)
        if is_main_process():
            check_run_folder(config, resume=resume, overwrite=overwrite)
        prepared = prepare(config)
        laps.end("checking the set")
        loaded = _load_for_training(config, prepared)
        collate = _make_collator(config, prepared, loaded)
        arrangement = arrange(config, prepared.train, prepared.backend, loaded, collate, say)
        schedule = plan_schedule(config, arrangement.plan.steps)
        _say_schedule(config, schedule)
        # Nothing is written, and no earlier run thrown away, before everything that can be refused has passed.
        run = open_run_folder(config, resume=resume, overwrite=overwrite)
        if is_main_process():
            note_inputs(run, prepared, resume=resume)
        checkpoint = find_checkpoint(run) if resume else None
        answers = _make_val_answers(config, prepared, loaded, run)
        trainer = make_trainer(
            prepared.backend,
            loaded,
            collate,
            prepared.train.rows,
            _choose_val_rows(config, prepared),
            config=config,
            arrangement=arrangement,
            schedule=schedule,
            run=run,
            stop=stop,
            val_answers=answers if config.monitor.eval_metrics else None,
            first_step=run.step_of(checkpoint) if checkpoint else 0,
            longest=_longest_batch(config, prepared.train, arrangement, collate),
        )
        laps.end("loading the model")
        with stop.deferred():
            if checkpoint is not None and has_ended(checkpoint, schedule.steps, config.monitor):
                load_ended(trainer, checkpoint)
            else:
                _train(trainer, checkpoint)
        if stop.signal is not None:
            raise Stopped(
                f"stopped by signal {stop.signal} after step {trainer.state.global_step} of {schedule.steps}; "
                "a checkpoint is saved, --resume goes on from it",
                stop.exit_code,
            )
        laps.end("training")
        if is_main_process():
            _save_weights(config, trainer, loaded, run)
        laps.end("saving the result")
        if config.monitor.report and answers is not None and not config.monitor.eval_metrics:
            answers.answer_result(trainer.state.best_global_step or trainer.state.global_step)
        laps.end("answering val rows")
        if is_main_process():
            _finish(config, prepared, summarise(config, prepared, loaded, trainer, schedule.steps, laps.seconds), run)
    leave_group()
    say(f"done: {run.weights}")
    return run


def _load_for_training(config: FitConfig, prepared: Prepared) -> LoadedModel:
    limit_memory(config.speed.gpu_memory_gb)
    precision = choose_precision(
        config.model.load_in,
        method=config.adapter.method,
        config=prepared.source.config,
        adapter=config.adapter,
        step=heaviest_step(prepared.train.lengths, config.optimizer.batch_size),
        fused=prepared.backend.NAME == "unsloth",
        gpu_memory_gb=config.speed.gpu_memory_gb,
    )
    say(f"weights in {precision.load_in} ({precision.reason})")
    if config.adapter.loftq or prepared.source.loftq:
        require_unrounded_base(prepared.source, precision.load_in, asked=config.adapter.loftq)
    # with layers switched one by one, Unsloth's own way of recomputing stays out
    checkpointing = "on" if plans_memory(config) else config.optimizer.gradient_checkpointing
    loaded = prepared.backend.load_model(
        prepared.source,
        prepared.processor,
        load_in=precision.load_in,
        max_length=prepared.max_length,
        method=config.adapter.method,
        checkpointing=checkpointing,
        trust_remote_code=config.model.trust_remote_code,
    )
    if config.adapter.method == "full":
        loaded.model.requires_grad_(True)
    elif prepared.source.adapter is None:
        prepared.backend.add_adapter(
            loaded,
            config.adapter,
            checkpointing=checkpointing,
            seed=config.optimizer.seed,
        )
        if config.adapter.loftq:
            layers, share = begin_with_rounding(loaded, trust_remote_code=config.model.trust_remote_code)
            say(f"loftq: the adapters of {layers} layers begin by making up for {share:.0%} of the rounding to 4 bit")
    else:
        say(f"going on with the adapter in {prepared.source.adapter}; --r, --alpha and the finetune flags do not apply")
    widen_trained_copies(loaded.model)
    _say_parameters(loaded)
    return loaded


def _make_collator(config: FitConfig, prepared: Prepared, loaded: LoadedModel) -> Collator:
    """The backend's collator, after it has shown that it does with some rows what the checks foresaw.

    Lengths of its batches are rounded up where the GPU takes long for new ones.
    """
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
    if prefers_cudnn(next(loaded.model.parameters()).device):
        return RoundingCollator(collate, prepared.processor.tokenizer.pad_token_id)
    return collate


def _choose_val_rows(config: FitConfig, prepared: Prepared) -> Rows | None:
    if prepared.val is None:
        return None
    rows = prepared.val.rows
    return rows.select(sample_indices(len(rows), config.run.eval_rows, config.optimizer.seed))


def _make_val_answers(config: FitConfig, prepared: Prepared, loaded: LoadedModel, run: RunFolder) -> ValAnswers | None:
    monitor = config.monitor
    if prepared.val is None:
        return None
    return ValAnswers(
        prepared.backend,
        loaded,
        prepared.chat,
        prepared.folder.split(prepared.val.name),
        samples=monitor.eval_samples if monitor.eval_metrics else monitor.report_samples,
        seed=config.optimizer.seed,
        metrics=monitor.eval_metrics,
        # nothing is kept for a backward pass
        batch_size=2 * config.optimizer.batch_size,
        log=run.answers,
    )


def _longest_batch(
    config: FitConfig, train: CheckedSplit, arrangement: Arrangement, collate: Collator
) -> Callable[[], dict[str, Any]] | None:
    """What makes the heaviest micro-batch of the run, where there is a GPU whose memory it could fill."""
    import torch

    if not torch.cuda.is_available():
        say("the longest batch is not tried before the first step: there is no GPU whose memory could run out")
        return None
    if plans_memory(config):
        # the plan of what is recomputed has tried it
        return None
    plan = arrangement.plan
    if plan.tokens is None:
        rows = train.lengths.tokens.argsort()[-plan.rows :].tolist()
    else:
        # how many rows share a pass follows from its tokens
        rows = plan.heaviest()
    arranged = arrangement.collate or collate
    return lambda: arranged([train.rows[row] for row in rows])


def _train(trainer: Any, checkpoint: Path | None) -> None:
    import torch

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            "the GPU's memory ran out: halve --batch-size and double --grad-accum, or try --load-in 4bit"
        ) from error
    except Exception as error:
        if not is_write_failure(error):
            raise
        raise as_resource_error(error, Path(trainer.args.output_dir).parent) from error


def _save_weights(config: FitConfig, trainer: Any, loaded: LoadedModel, run: RunFolder) -> None:
    with whole_folder(run.weights, "the checkpoints are whole: make room, and --resume finishes the run") as folder:
        trainer.save_model(str(folder))
        save_processor(loaded.source, folder, trust_remote_code=config.model.trust_remote_code)
        if run.method == "lora":
            pin_base(folder, identify_base(loaded.source))


def _finish(config: FitConfig, prepared: Prepared, report: dict[str, Any], run: RunFolder) -> None:
    """Writes run.html and, last of all, run.json."""
    try:
        if config.monitor.report:
            write_run_page(run, report, prepared.folder.split(prepared.val.name) if prepared.val else None)
            say(f"report: {run.page}")
        run.finish(report)
    except OSError as error:
        raise as_resource_error(error, run.path, "make room, and --resume finishes the run") from error


def _say_parameters(loaded: LoadedModel) -> None:
    say(describe_trainable(list_trainable(loaded.model)))


def _say_schedule(config: FitConfig, schedule: Schedule) -> None:
    batch = config.optimizer.batch_size * config.optimizer.grad_accum * process_count()
    connector = "" if config.adapter.connector == "frozen" else f", connector {config.connector_lr:g}"
    say(
        f"{schedule.steps} steps of {batch} rows ({schedule.steps_per_epoch} an epoch), "
        f"{schedule.warmup_steps} of them warm-up; {optimizer_name(config)}, "
        f"lr {config.lr:g} (vision tower {config.vision_lr:g}{connector})"
    )
    if schedule.steps < _FEW_STEPS:
        say(
            f"warning: {schedule.steps} step{'s are' if schedule.steps > 1 else ' is'} few; "
            f"under {_FEW_STEPS} a model seldom learns more than the form of the answers"
        )
