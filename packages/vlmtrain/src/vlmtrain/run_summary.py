"""run.json: what a finished run was made of, and what came of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from vlmdata.errors import DataError
from vlmdata.manifest import MANIFEST_NAME, hash_file, write_json_atomically
from vlmtrain.base_identity import identify_base
from vlmtrain.config import FitConfig
from vlmtrain.environment import describe_environment
from vlmtrain.json_files import read_object
from vlmtrain.loaded import LoadedModel
from vlmtrain.preparation import Prepared
from vlmtrain.processes import process_count
from vlmtrain.run_folder import RunFolder, resolve_paths
from vlmtrain.trainable import count_parameters

__all__ = ["Laps", "note_inputs", "summarise"]


class Laps:
    """Wall time of what is done one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def end(self, name: str) -> None:
        """Gives the time since the last call a name."""
        now = time.monotonic()
        self.seconds[name] = now - self._began
        self._began = now


def note_inputs(run: RunFolder, prepared: Prepared, *, resume: bool) -> None:
    """Writes inputs.json when a run begins, and compares with it when it goes on.

    Raises:
        DataError: The set has changed since the run began: the rows of its first steps are no longer known. Or the file
            is broken.
    """
    digest = hash_file(prepared.folder.path / MANIFEST_NAME)
    if resume and run.inputs.is_file():
        before = str(read_object(run.inputs).get("data_manifest_sha256"))
        if before != digest:
            raise DataError(
                f"{prepared.folder.path}: the set was built anew since the run began (manifest.json was "
                f"{before[:12]}…, now {digest[:12]}…): start the run again with --overwrite, or in another folder"
            )
        return
    base = {"name": prepared.source.name, "revision": prepared.source.revision}
    write_json_atomically(
        run.inputs, {"data_manifest_sha256": digest, "base": base, "environment": describe_environment()}
    )


def summarise(
    config: FitConfig,
    prepared: Prepared,
    loaded: LoadedModel,
    trainer: Any,
    planned_steps: int,
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """The contents of run.json.

    Args:
        config: All settings.
        prepared: Set, model and backend.
        loaded: The trained model.
        trainer: After training.
        planned_steps: Steps that the settings ask for; an early end leaves fewer.
        timing: Wall time of the parts of this process, in seconds.
    """
    state = trainer.state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "config": resolve_paths(config),
        "weights": "adapter" if config.adapter.method == "lora" else "model",
        "base": identify_base(prepared.source),
        "family": prepared.source.family.name if prepared.source.family else None,
        "backend": prepared.backend.NAME,
        "load_in": loaded.load_in,
        "data": str(prepared.folder.path.resolve()),
        "data_fingerprint": prepared.folder.manifest.fingerprint,
        "data_manifest_sha256": hash_file(prepared.folder.path / MANIFEST_NAME),
        "rows": {"train": len(prepared.train.rows), "val": len(prepared.val.rows) if prepared.val else 0},
        "tokens": {"train": int(prepared.train.lengths.tokens.sum())},
        "max_length": prepared.max_length,
        "parameters": {
            part: {"trainable": trainable, "all": total}
            for part, (trainable, total) in sorted(count_parameters(loaded.model.named_parameters()).items())
        },
        "processes": process_count(),
        "steps": state.global_step,
        "planned_steps": planned_steps,
        # transformers counts the steps before a resumption, but not their losses
        "train_loss": statistics.fmean(losses) if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_metric": config.monitor.best_metric if prepared.val else None,
        "best_value": state.best_metric,
        "best_step": state.best_global_step,
        "seconds": round(sum(timing.values()), 1),
        "timing": {name: round(seconds, 1) for name, seconds in timing.items()},
        "environment": describe_environment(),
    }
