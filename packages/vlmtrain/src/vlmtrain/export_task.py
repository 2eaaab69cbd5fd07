"""What an export needs, found and checked before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingDependencyError
from vlmdata.shards import BuiltFolder, Split, open_folder
from vlmtrain.backends import Backend, choose_backend
from vlmtrain.base_identity import require_same_base
from vlmtrain.drift import DriftSet, open_drift_set
from vlmtrain.export_folder import check_export_folder
from vlmtrain.gguf_export import LlamaCpp, find_llama_cpp
from vlmtrain.hub_upload import check_upload
from vlmtrain.metrics import find_metrics
from vlmtrain.precision import can_quantise
from vlmtrain.quantised_export import WARNING
from vlmtrain.rows import open_rows, sample_indices
from vlmtrain.settings import ExportConfig
from vlmtrain.source import ModelSource, find_model

__all__ = ["ExportTask", "prepare_export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTask:
    """What is exported, how, and on what it is checked: all that is known before weights are loaded."""

    name: str
    source: ModelSource
    config: ExportConfig
    backend: Backend
    folder: BuiltFolder
    split: Split
    rows: list[dict[str, Any]]
    precision: str
    """In which the trained model and its 16-bit export are compared."""
    llama_cpp: LlamaCpp | None
    drift_set: DriftSet | None

    @property
    def title(self) -> str:
        """Name of the model: the hub's, or that of the folder."""
        return (self.config.push or str(self.config.out.resolve())).rpartition("/")[2]


def prepare_export(name: str, config: ExportConfig) -> ExportTask:
    """Finds everything an export needs, and refuses whatever would fail after the long part.

    Args:
        name: A run, or a folder with an adapter or model.
        config: What to write.

    Raises:
        ToolkitError: Something is missing or in the way.
    """
    find_metrics(config.metrics)
    source = find_model(name)
    if config.format == "adapter" and source.adapter is None:
        raise ConfigError(f"{name}: has no adapter to export (all weights were trained); use --format merged_16bit")
    if config.format == "merged_4bit" and not can_quantise():
        raise MissingDependencyError("--format merged_4bit needs a GPU, and none is visible to torch; use merged_16bit")
    llama_cpp = find_llama_cpp(config.llama_cpp, config.gguf_type) if config.format == "gguf" else None
    require_same_base(source)
    folder = open_folder(source.data_or(config.data))
    split = next(
        (folder.splits[s] for s in ("val", "test", "train") if s in folder.splits and len(folder.splits[s])), None
    )
    if split is None:
        raise DataError(f"{folder.path}: no rows to check the export on")
    decoded = open_rows(split)
    rows = [decoded[i] for i in sample_indices(split.num_rows, config.check_rows, seed=0)]
    check_export_folder(source, config.out, overwrite=config.overwrite)
    if config.push:
        check_upload(config.push, public=config.public)
        if config.format == "adapter" and source.is_local:
            print(f"warning: the adapter's base {source.name} is on this machine only: nobody else can load it")
    if config.format == "merged_4bit":
        print(f"warning: {WARNING}", flush=True)
    backend, reason = choose_backend(config.backend)
    print(f"backend: {backend.NAME} ({reason})", flush=True)
    precision = _check_precision(source)
    drifts = config.format == "merged_4bit" or source.trained_in not in (None, precision)
    return ExportTask(
        name=name,
        source=source,
        config=config,
        backend=backend,
        folder=folder,
        split=split,
        rows=rows,
        precision=precision,
        llama_cpp=llama_cpp,
        drift_set=open_drift_set(split, rows=config.drift_rows) if drifts else None,
    )


def _check_precision(source: ModelSource) -> str:
    import torch

    # A CPU multiplies 32-bit weights faster, and the rounding of the export itself is then all that differs.
    if not torch.cuda.is_available():
        return "32bit"
    return "32bit" if source.trained_in == "32bit" else "16bit"
