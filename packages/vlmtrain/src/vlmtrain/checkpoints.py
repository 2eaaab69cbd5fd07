"""Checkpoints that are whole or not there, that are found again when they are loaded, and links to the last and best.

RUN/checkpoints/checkpoint-40/    weights, optimizer, schedule, random states, trainer_state.json
RUN/checkpoints/last, best        relative links; `best` exists where the run is evaluated
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmtrain.whole_folders import STAGING_NAME, as_resource_error, is_write_failure, move_into_place

__all__ = ["with_loadable_checkpoints", "with_whole_checkpoints"]


def with_loadable_checkpoints(base: type) -> type:
    """A trainer whose checkpoints of a whole model are found again when it is resumed or its best one is loaded.

    transformers writes weights under the names that a model has on the hub, and a trainer reads them under those that
    it has in memory. For vision-language models the two differ since its fifth version: nothing is loaded, in silence.

    Args:
        base: A transformers Trainer.
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


def with_whole_checkpoints(base: type) -> type:
    """A trainer whose checkpoints are there whole or not at all, with links to the last and the best.

    transformers writes a checkpoint's files one after the other into their final place; a full disk or a kill leaves
    half of one, which the next resumption would take.

    Args:
        base: A transformers Trainer.
    """
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

    class CheckpointTrainer(base):  # type: ignore[misc]  # its class is known when it runs
        """Writes each checkpoint in `.writing` first."""

        def _get_output_dir(self, trial: Any) -> str:
            return str(Path(super()._get_output_dir(trial)) / STAGING_NAME)

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: trl would write one about a finished model beside the checkpoints."""

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            checkpoints = Path(self.args.output_dir)
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            staging, target = checkpoints / STAGING_NAME / name, checkpoints / name
            try:
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(target)
                # every process has written its random state
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self.state.save_to_json(str(staging / "trainer_state.json"))
                    move_into_place(staging, target)
            except Exception as error:
                if not is_write_failure(error):
                    raise
                shutil.rmtree(staging.parent, ignore_errors=True)
                raise as_resource_error(error, target, _what_is_left(checkpoints)) from error
            if self.args.should_save:
                rotate_checkpoints(
                    output_dir=str(checkpoints),
                    save_total_limit=self.args.save_total_limit,
                    best_model_checkpoint=self.state.best_model_checkpoint,
                )
                _link(checkpoints / "last", name)
                if self.state.best_model_checkpoint:
                    _link(checkpoints / "best", Path(self.state.best_model_checkpoint).name)
            self.accelerator.wait_for_everyone()

    return CheckpointTrainer


def _what_is_left(checkpoints: Path) -> str:
    last = checkpoints / "last"
    if last.is_dir():
        return f"{os.readlink(last)} is whole: make room, and --resume goes on from it"
    return "no checkpoint was saved before"


def _link(link: Path, name: str) -> None:
    """Points a relative link at a checkpoint, without a moment in which there is none."""
    temporary = link.with_name(f".{link.name}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name)
        temporary.replace(link)
    except PermissionError:
        # file systems without links raise this; checkpoints are found without them
        print(f"{link}: this file system has no links", flush=True)
