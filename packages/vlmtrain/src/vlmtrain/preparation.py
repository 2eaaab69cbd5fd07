"""What is known of a run before weights are loaded: the set has passed its checks, the backend is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmdata.shards import BuiltFolder, Split, open_folder
from vlmtrain.adapter_config import describe_preset
from vlmtrain.backends import Backend, choose_backend
from vlmtrain.chat import ChatFormat
from vlmtrain.config import DataConfig, FitConfig
from vlmtrain.device import describe_limits
from vlmtrain.layers import adapter_targets, full_modules
from vlmtrain.model_shape import read_shape
from vlmtrain.preflight import CheckedSplit, check_split
from vlmtrain.processes import is_main_process, say
from vlmtrain.processors import load_chat_format, load_processor
from vlmtrain.shard_checks import check_shards
from vlmtrain.source import ModelSource, find_model
from vlmtrain.template_completion import describe_completion

__all__ = ["Prepared", "check_named_modules", "prepare"]


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
    if config.adapter.preset is not None:
        say(describe_preset(config.adapter.preset, config.flat()))
    folder = open_folder(config.data.data)
    train_split = folder.split(config.data.train_split)
    val_split = _find_val_split(config, folder)
    source = find_model(config.model.model, revision=config.model.revision)
    backend, reason = choose_backend(config.model.backend)
    say(f"backend: {backend.NAME} ({reason})")
    say(f"model: {source.name} (family {source.family.name if source.family else 'unknown'})")
    for line in describe_limits(source.family.name if source.family else None):
        say(f"warning: {line}")
    if is_main_process():
        say(check_shards(folder))
    if source.adapter is None and (config.adapter.connector != "frozen" or config.adapter.modules_to_save):
        check_named_modules(config, source, backend)
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
    if val_split is not None:
        if val_split.name == train_split.name:
            say(f"warning: split {val_split.name!r} is learned from and judged by: its scores say nothing of new rows")
        val = check_split(val_split, config.data, chat, source.family)
        say(val.describe())
    else:
        say(f"no rows in a split {config.data.val_split!r}: no evaluation loss, the last checkpoint is kept")
    return Prepared(folder=folder, source=source, backend=backend, processor=processor, chat=chat, train=train, val=val)


def check_named_modules(config: FitConfig, source: ModelSource, backend: Backend) -> None:
    """Refuses, before weights are loaded, names that fit nothing and modules that the backend cannot train.

    Args:
        config: The run's settings.
        source: The model.
        backend: Who trains.

    Raises:
        ConfigError: With what can be passed instead.
    """
    model = read_shape(source.config).model
    adapter_targets(model, config.adapter)
    bare = [
        f"{module}.{name}"
        for module in full_modules(model, config.adapter)
        for name, _ in model.get_submodule(module).named_parameters()
        if name.rpartition(".")[2] not in ("weight", "bias")
    ]
    if bare and backend.NAME == "unsloth":
        raise ConfigError(
            f"backend 'unsloth' would leave {', '.join(bare)} as it is, which is no layer's weight: pass --backend "
            "transformers, or leave --connector and --modules-to-save out"
        )


def _find_val_split(config: FitConfig, folder: BuiltFolder) -> Split | None:
    name = config.data.val_split
    if name in folder.splits and folder.splits[name].num_rows:
        return folder.split(name)
    asked = [f"--{option.replace('_', '-')}" for option in config.monitor.asks_for_val]
    if name != DataConfig.__dataclass_fields__["val_split"].default:
        asked.insert(0, f"--val-split {name}")
    if asked:
        raise DataError(
            f"{folder.path}: {', '.join(asked)} need{'s' * (len(asked) == 1)} rows in a split {name!r}, and there are "
            f"none; the splits are {', '.join(map(repr, folder.splits))}: build with --split {name}=0.1"
        )
    return None
