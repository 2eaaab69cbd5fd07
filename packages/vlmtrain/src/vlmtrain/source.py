"""What a MODEL_OR_RUN names: a hub id, a folder with a whole model, a folder with an adapter, or a run of ours."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import Family, find_family
from vlmtrain.json_files import read_object

__all__ = ["EXPORT_FILE", "RESULT_PATTERNS", "RUN_FILE", "ModelSource", "find_model"]

RUN_FILE = "run.json"
EXPORT_FILE = "export.json"
RESULT_PATTERNS = ("eval-*", "rank-*")
"""What `vlmtrain eval` writes into a model's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model's weights, adapter and processor are."""

    name: str
    """Absolute path of a folder with whole weights, or a hub id: the model itself, or an adapter's base."""
    revision: str | None
    """Branch, tag or commit, for a hub id."""
    adapter: Path | None
    """Folder of the adapter on top, if there is one."""
    processor: str
    """Path or hub id of the processor."""
    config: dict[str, Any]
    """config.json of the model or base."""
    family: Family | None
    """The family that the config belongs to, if it is a known one."""
    run: Path | None = None
    """The run's folder, when the name was one."""
    trained_in: str | None = None
    """Precision of the weights that a run trained on: `4bit`, `8bit`, `16bit` or `32bit`."""
    loftq: bool = False
    """Whether a run's adapters began by making up for 4-bit weights, so that they fit no others."""
    trained_on: Path | None = None
    """The built folder that a run trained on."""
    recorded_base: dict[str, Any] | None = None
    """What the run or the adapter's export recorded of the base, see `base_identity`."""

    def data_or(self, given: Path | None) -> Path:
        """The folder that was given, else the one that the run trained on.

        Raises:
            ConfigError: Neither is known.
        """
        data = given or self.trained_on
        if data is None:
            raise ConfigError("--data is missing: only a run's folder remembers what it was trained on")
        return data

    def result_path(self, given: Path | None, file_name: str) -> Path:
        """Where a result goes: the file that was given, else into the run's, adapter's or model's folder.

        Raises:
            ConfigError: That folder does not exist.
        """
        out = given or (self.run or self.adapter or Path(self.name)) / file_name
        if not out.parent.is_dir():
            raise ConfigError(f"{out.parent}: no such folder for the result; name a file with --out")
        return out

    @property
    def is_local(self) -> bool:
        """Whether the weights are in a folder here."""
        return Path(self.name).is_absolute()


def find_model(name: str, *, revision: str | None = None, weights_needed: bool = True) -> ModelSource:
    """Follows a name to weights, adapter and processor, and reads the model's config.

    Local folders come out as absolute paths: Unsloth looks a relative `a/b` up on the hub.

    Args:
        name: A run's folder, an adapter's, a model's, or a hub id `owner/name`.
        revision: Branch, tag or commit, for a hub id.
        weights_needed: Whether a folder without the model's weights is refused.

    Raises:
        ConfigError: It is no folder here and no hub id, or a folder without a model.
        DataError: It is a run that did not finish, or a broken config.
        ResourceError: The hub does not answer or does not have it.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if not _looks_like_hub_id(name):
            raise ConfigError(f"{name}: no such model folder, and not a hub id of the form owner/name")
        from vlmtrain.hub import fetch_model_config

        config = fetch_model_config(name, revision)
        return _whole_model(name, revision, config)
    path = path.resolve()
    if (path / RUN_FILE).is_file():
        report = read_object(path / RUN_FILE)
        if missing := [key for key in ("weights", "load_in", "data") if key not in report]:
            raise DataError(f"{path / RUN_FILE}: not the report of a run (no {', '.join(missing)})")
        weights = find_model(str(path / str(report["weights"])), weights_needed=weights_needed)
        data = Path(report["data"])
        return dataclasses.replace(
            weights,
            run=path,
            trained_in=report["load_in"],
            trained_on=data,
            loftq=bool(report.get("config", {}).get("loftq")),
            recorded_base=report.get("base"),
        )
    if (path / "checkpoints").is_dir() and not (path / "config.json").is_file():
        raise DataError(f"{path}: the run did not finish (no {RUN_FILE}); go on with `vlmtrain fit … --resume`")
    if (path / "adapter_config.json").is_file():
        return _adapter_model(path, weights_needed=weights_needed)
    if (path / "config.json").is_file():
        _require_files(path, weights_needed=weights_needed)
        return _whole_model(str(path), None, read_object(path / "config.json"))
    if any(path.glob("*.gguf")):
        raise ConfigError(
            f"{path}: a GGUF export is for llama.cpp: llama-mtmd-cli -m MODEL.gguf --mmproj mmproj-MODEL.gguf "
            "--image FILE -p PROMPT; here the run or its merged_16bit export answers"
        )
    raise ConfigError(f"{path}: no model here (neither config.json, adapter_config.json nor {RUN_FILE})")


def _adapter_model(path: Path, *, weights_needed: bool) -> ModelSource:
    adapter = read_object(path / "adapter_config.json")
    base_name = str(adapter.get("base_model_name_or_path") or "")
    if not base_name:
        raise ConfigError(f"{path}: adapter_config.json does not name the adapter's base model")
    try:
        base = find_model(base_name, revision=adapter.get("revision"), weights_needed=weights_needed)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: the adapter's base model is gone: {error}; where it was moved, write its new place as "
            "base_model_name_or_path into adapter_config.json"
        ) from error
    files = ("adapter_model.safetensors", "adapter_model.bin")
    if weights_needed and not any((path / file).is_file() for file in files):
        raise ConfigError(f"{path}: an adapter_config.json but no weights (adapter_model.safetensors)")
    has_processor = any((path / file).is_file() for file in ("processor_config.json", "preprocessor_config.json"))
    return ModelSource(
        name=base.name,
        revision=base.revision,
        adapter=path,
        processor=str(path) if has_processor else base.processor,
        config=base.config,
        family=base.family,
        recorded_base=read_object(path / EXPORT_FILE).get("base") if (path / EXPORT_FILE).is_file() else None,
    )


def _whole_model(name: str, revision: str | None, config: dict[str, Any]) -> ModelSource:
    return ModelSource(
        name=name, revision=revision, adapter=None, processor=name, config=config, family=find_family(config)
    )


def _require_files(path: Path, *, weights_needed: bool) -> None:
    if weights_needed and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ConfigError(f"{path}: a config.json but no weights (*.safetensors)")
    if not any((path / file).is_file() for file in ("processor_config.json", "preprocessor_config.json")):
        raise ConfigError(
            f"{path}: a model without its processor (no processor_config.json): "
            "save it there with AutoProcessor.from_pretrained(BASE).save_pretrained(DIR)"
        )


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~", "/")) and " " not in name
