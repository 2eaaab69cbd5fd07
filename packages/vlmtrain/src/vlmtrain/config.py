"""Every setting of a run: sections of plain fields that are at once CLI options, YAML keys and the Python API.

The sections share one flat namespace: `max_steps` is `--max-steps` and `max_steps:`. A value given on the command
line wins over the config file, which wins over the preset, which wins over the default.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError
from vlmdata.options import build_section, flatten
from vlmtrain.adapter_config import AdapterConfig, preset_values
from vlmtrain.run_config import MonitorConfig, RunConfig
from vlmtrain.speed.options import SpeedConfig
from vlmtrain.value_checks import not_positive, not_seed

__all__ = [
    "SECTIONS",
    "AdapterConfig",
    "BackendName",
    "DataConfig",
    "FitConfig",
    "LoadIn",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "RunConfig",
]

BackendName = Literal["auto", "unsloth", "transformers"]
LoadIn = Literal["auto", "4bit", "8bit", "16bit", "32bit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which rows are learned from, and in what form."""

    data: Path
    """Folder that `vlmdata build` made."""
    train_split: str = "train"
    """Split to learn from."""
    val_split: str = "val"
    """Split for the evaluation loss; without such a split there is none, and the last checkpoint is kept."""
    max_length: int | None = None
    """Most tokens of a row, image tokens included; see --over-long. Unset: the longest row of the set."""
    over_long: Literal["fail", "drop", "truncate"] = "fail"
    """What to do with rows above --max-length. truncate: cut text, by whole turns first, never images or end tokens."""
    train_on: Literal["all", "last"] = "all"
    """Assistant turns that carry loss: all of them, or the last of each conversation."""
    instruction_part: str | None = None
    """Text with which the model's template opens a user's turn; only for models of an unknown family."""
    response_part: str | None = None
    """Text with which the model's template opens an assistant's turn; only for models of an unknown family."""
    workers: int | None = None
    """Processes that decode and tokenise rows. Unset: 4 where a GPU waits for them, else none."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        problems = not_positive(self, "max_length")
        if self.workers is not None and self.workers < 0:
            problems.append(f"workers must not be negative, as {self.workers!r} is")
        if (self.instruction_part is None) != (self.response_part is None):
            problems.append("--instruction-part and --response-part go together: pass both or neither")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, loaded how."""

    model: str
    """Model folder or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    backend: BackendName = "auto"
    """Program that trains: Unsloth where a supported GPU is there, else transformers with peft and trl."""
    load_in: LoadIn = "auto"
    """Precision of the weights. auto: 16bit where it fits in 85 % of the GPU's memory, else 4bit; 32bit on a CPU."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How the weights move, and for how long."""

    lr: float | None = None
    """Peak learning rate. Unset: 1e-4 for adapters, 1e-5 for full fine-tuning."""
    vision_lr: float | None = None
    """Peak learning rate of the vision tower. Unset: --lr for adapters, a fifth of it for full fine-tuning."""
    connector_lr: float | None = None
    """Peak learning rate of the connector, where it is trained. Unset: --lr."""
    epochs: float = 1.0
    """Passes over the training rows, unless --max-steps is given."""
    max_steps: int | None = None
    """Optimizer steps; wins over --epochs."""
    batch_size: int = 2
    """Rows in one forward pass on one device."""
    grad_accum: int = 4
    """Forward passes in one optimizer step."""
    optimizer: Literal["auto", "adamw_8bit", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit"] = "auto"
    """auto: adamw_torch_fused for adapters on a GPU, adamw_8bit for all weights, adamw_torch on a CPU."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients above this norm are scaled down to it."""
    gradient_checkpointing: Literal["auto", "unsloth", "on", "off"] = "auto"
    """Recompute activations in the backward pass to save memory: all (on), none (off), or all with Unsloth's moving of
    them to the host. auto: on a GPU as many layers as its memory asks for, on a CPU none."""
    seed: int = 3407
    """Seed of the adapters' initialisation and of the order of rows."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        problems = not_positive(
            self, "lr", "vision_lr", "connector_lr", "max_steps", "epochs", "batch_size", "grad_accum", "max_grad_norm"
        )
        if not 0 <= self.warmup <= 1:
            problems.append(f"warmup is a share of the steps and must lie in [0, 1], not {self.warmup!r}")
        if not self.weight_decay >= 0:
            problems.append(f"weight_decay must not be negative, as {self.weight_decay!r} is")
        problems += not_seed(self)
        if problems:
            raise ConfigError(problems)

    def count_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of a run, of which one pass over the rows has so many."""
        return self.max_steps or max(1, math.ceil(steps_per_epoch * self.epochs))

    def resolve_optimizer(self, method: str, *, on_gpu: bool) -> str:
        """The optimizer behind `auto`.

        Adapters are many small matrices: 8-bit AdamW takes them one by one, to save memory that hardly counts; torch's
        fused one takes all at once. For all weights it is the reverse.

        Args:
            method: `lora` or `full`.
            on_gpu: Whether there is one.
        """
        if self.optimizer != "auto":
            return self.optimizer
        if not on_gpu:
            return "adamw_torch"
        return "adamw_torch_fused" if method == "lora" else "adamw_8bit"


SECTIONS: tuple[type, ...] = (
    DataConfig,
    ModelConfig,
    AdapterConfig,
    OptimizerConfig,
    SpeedConfig,
    RunConfig,
    MonitorConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """One run."""

    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    speed: SpeedConfig
    run: RunConfig
    monitor: MonitorConfig

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> FitConfig:
        """Makes the config from flat values; those of a preset stand behind them.

        Raises:
            ConfigError: With every problem of every section at once.
        """
        problems = [f"--{name} is missing" for name in ("data", "model", "out") if values.get(name) in (None, "")]
        try:
            preset = preset_values(values.get("preset"))
            given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            values = {**preset, **{name: value for name, value in given.items() if value not in (None, ())}}
        except ConfigError as error:
            problems.extend(error.problems)
        if problems:
            values = {"data": Path(), "model": "-", "out": Path()} | {k: v for k, v in values.items() if v is not None}
        data = build_section(DataConfig, values, problems)
        model = build_section(ModelConfig, values, problems)
        adapter = build_section(AdapterConfig, values, problems)
        optimizer = build_section(OptimizerConfig, values, problems)
        speed = build_section(SpeedConfig, values, problems)
        run = build_section(RunConfig, values, problems)
        monitor = build_section(MonitorConfig, values, problems)
        if data and model and adapter and optimizer and speed and run and monitor:
            config = cls(
                data=data,
                model=model,
                adapter=adapter,
                optimizer=optimizer,
                speed=speed,
                run=run,
                monitor=monitor,
            )
            problems.extend(config._clashes())
            if not problems:
                return config
        raise ConfigError(problems)

    def flat(self) -> dict[str, Any]:
        """All values by option name, as config.yaml of a run holds them."""
        return flatten(self.data, self.model, self.adapter, self.optimizer, self.speed, self.run, self.monitor)

    @property
    def lr(self) -> float:
        """Peak learning rate of the language model."""
        if self.optimizer.lr is not None:
            return self.optimizer.lr
        return 1e-4 if self.adapter.method == "lora" else 1e-5

    @property
    def vision_lr(self) -> float:
        """Peak learning rate of the vision tower."""
        if self.optimizer.vision_lr is not None:
            return self.optimizer.vision_lr
        # A pretrained tower forgets quickly when all of its weights move; adapters leave it in place.
        return self.lr if self.adapter.method == "lora" else self.lr / 5

    @property
    def connector_lr(self) -> float:
        """Peak learning rate of the connector."""
        return self.lr if self.optimizer.connector_lr is None else self.optimizer.connector_lr

    def _clashes(self) -> list[str]:
        problems = []
        # what a run writes would be taken for a part of the set or of the model
        out = Path(self.run.out).resolve()
        for name, folder in (("data", self.data.data), ("model", self.model.model)):
            if out != Path(os.devnull) and out == Path(folder).expanduser().resolve():
                problems.append(f"out {str(self.run.out)!r} is the folder of --{name}: name another for the run")
        if self.adapter.method == "full" and self.model.load_in in ("4bit", "8bit"):
            problems.append(
                f"load_in {self.model.load_in!r} clashes with method 'full': quantised weights cannot be trained"
            )
        if self.adapter.loftq and self.model.load_in not in ("auto", "4bit"):
            problems.append(
                f"loftq clashes with load_in {self.model.load_in!r}: it makes up for the rounding of 4-bit weights"
            )
        if self.optimizer.gradient_checkpointing == "unsloth" and self.model.backend == "transformers":
            problems.append("gradient_checkpointing 'unsloth' clashes with backend 'transformers': use 'on'")
        return problems
