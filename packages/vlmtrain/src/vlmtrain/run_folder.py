"""The folder of a run: what it holds, when it may be written to, and where it stands.

RUN/config.yaml       every setting, resolved: `vlmtrain fit RUN/config.yaml` repeats the run
RUN/inputs.json       what it was begun with: hash of the set's manifest, base model, versions, machine
RUN/metrics.jsonl     one line for each logged step
RUN/answers.jsonl     answers to val rows at each evaluation with --eval-metrics, else of the result alone
RUN/run.html          the run for people to look at; its curves are in curves.png too
RUN/checkpoints/      what a stopped run goes on from
RUN/adapter/, model/  the best checkpoint's weights, with the processor
RUN/run.json          written last: where it exists, the run is whole
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmdata.manifest import write_json_atomically
from vlmtrain.config import SECTIONS, FitConfig
from vlmtrain.json_files import read_lines
from vlmtrain.processes import is_main_process
from vlmtrain.whole_folders import STAGING_NAME

__all__ = ["RunFolder", "check_run_folder", "drop_lines_after", "open_run_folder", "resolve_paths"]

_CHECKPOINT = re.compile(r"checkpoint-\d+")
# What may differ between a run and its continuation without changing what is learned.
_FREE_TO_CHANGE = frozenset(
    {"out", "workers", "keep_checkpoints", "log_steps", "report_to", "report", "report_samples"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Paths of one run."""

    path: Path
    """The folder."""
    method: str
    """`lora` or `full`."""

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def inputs(self) -> Path:
        """What the run was begun with: hash of the set's manifest, versions, machine."""
        return self.path / "inputs.json"

    @property
    def metrics(self) -> Path:
        """The log of the steps."""
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        """Answers to val rows."""
        return self.path / "answers.jsonl"

    @property
    def curves(self) -> Path:
        """The learning curves."""
        return self.path / "curves.png"

    @property
    def page(self) -> Path:
        """The run for people to look at."""
        return self.path / "run.html"

    @property
    def checkpoints(self) -> Path:
        """What a stopped run goes on from."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Where the result's weights and processor go."""
        return self.path / ("adapter" if self.method == "lora" else "model")

    @property
    def report(self) -> Path:
        """The file whose existence means that the run is whole."""
        return self.path / "run.json"

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        # a copy that someone made of one, checkpoint-40-old, is not the run's
        named = [p for p in self.checkpoints.glob("checkpoint-*") if _CHECKPOINT.fullmatch(p.name)]
        found = [p for p in named if (p / "trainer_state.json").is_file()]
        return max(found, key=self.step_of, default=None)

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The optimizer step after which a checkpoint was written."""
        return int(checkpoint.name.rpartition("-")[2])

    def adopt_checkpoint(self, checkpoint: Path) -> None:
        """Looks for a checkpoint's best predecessor in this folder; the run may have been moved since it stopped."""
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        best = state.get("best_model_checkpoint")
        if best and Path(best).parent != self.checkpoints:
            write_json_atomically(path, state | {"best_model_checkpoint": str(self.checkpoints / Path(best).name)})

    def finish(self, report: dict[str, Any]) -> None:
        """Writes run.json."""
        write_json_atomically(self.report, report)


def check_run_folder(config: FitConfig, *, resume: bool, overwrite: bool) -> RunFolder:
    """Whether a run may be begun in a folder, or gone on with; nothing is written.

    Args:
        config: The run's settings.
        resume: Go on from the last checkpoint.
        overwrite: Throw an earlier run away.

    Raises:
        ConfigError: There is a run already, or the one to go on with had other settings.
        DataError: There is nothing to go on with.
        ResourceError: No folder can be made there.
    """
    run = RunFolder(path=config.run.out.resolve(), method=config.adapter.method)
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite throws it away: pass one of them")
    if resume:
        _check_same_run(run, config)
    elif run.config.exists() and not overwrite:
        state = (
            "is finished; name another --out, or throw it away with --overwrite"
            if run.report.exists()
            else "was begun and did not finish; --resume goes on with it, --overwrite throws it away"
        )
        raise ConfigError(f"{config.run.out}: a run is here and {state}")
    _require_place(run.path, config.run.out)
    return run


def _require_place(path: Path, given: Path) -> None:
    """Refuses a place where no folder can be made, before the model is loaded for it."""
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise ResourceError(f"{given}: cannot be written: {nearest} is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ResourceError(f"{given}: cannot be written: no permission to write into {nearest}")


def open_run_folder(config: FitConfig, *, resume: bool, overwrite: bool) -> RunFolder:
    """Makes a run's folder, or goes on with one.

    Args:
        config: The run's settings; written to config.yaml.
        resume: Go on from the last checkpoint.
        overwrite: Throw an earlier run away.

    Raises:
        ConfigError: See `check_run_folder`.
        DataError: Likewise.
        ResourceError: The folder cannot be written.
    """
    import yaml

    if not is_main_process():
        return RunFolder(path=config.run.out.resolve(), method=config.adapter.method)
    run = check_run_folder(config, resume=resume, overwrite=overwrite)
    try:
        if overwrite and run.config.exists():
            _remove_run(run)
        run.report.unlink(missing_ok=True)
        shutil.rmtree(run.checkpoints / STAGING_NAME, ignore_errors=True)  # a checkpoint that a kill left unfinished
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.config.write_text(yaml.safe_dump(resolve_paths(config), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{config.run.out}: cannot be written: {error.strerror}") from error
    return run


def resolve_paths(config: FitConfig) -> dict[str, Any]:
    """All settings by option name, with the paths that are here made absolute, so that they hold anywhere."""
    flat = config.flat()
    for name in ("data", "model", "out"):
        path = Path(flat[name]).expanduser()
        if name == "out" or path.exists():
            flat[name] = os.path.abspath(path)
    return flat


def drop_lines_after(path: Path, step: int, *, without: str | None = None) -> None:
    """Takes back the lines of a JSON-lines log that belong to steps after this one.

    Args:
        path: A log whose lines have a `step`; need not be there.
        step: The last step that stays.
        without: Lines with this key go too.
    """
    if not path.exists():
        return
    kept = []
    for line in read_lines(path):
        try:
            log = json.loads(line)
        except ValueError:  # cut short when the run was killed
            continue
        if log["step"] <= step and without not in log:
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def _remove_run(run: RunFolder) -> None:
    # only what a run writes: a folder named by mistake keeps everything else
    for folder in (run.checkpoints, run.path / "adapter", run.path / "model"):
        if folder.exists():
            shutil.rmtree(folder)
    for file in (run.report, run.inputs, run.metrics, run.answers, run.curves, run.page, run.config):
        file.unlink(missing_ok=True)


def _check_same_run(run: RunFolder, config: FitConfig) -> None:
    from vlmdata.options import read_yaml

    if not run.config.is_file():
        raise DataError(f"{config.run.out}: no run to resume here (no config.yaml); start it without --resume")
    before = resolve_paths(FitConfig.from_values(read_yaml(run.config, SECTIONS)))
    now = resolve_paths(config)
    changed = [
        f"{name} was {before[name]!r}, now {now[name]!r}"
        for name in now
        if name not in _FREE_TO_CHANGE and before.get(name) != now[name]
    ]
    if changed:
        raise ConfigError(
            f"{config.run.out}: a resumed run keeps its settings; changed: {', '.join(changed)}; "
            f"`vlmtrain fit {run.config} --resume` goes on with those it had"
        )
