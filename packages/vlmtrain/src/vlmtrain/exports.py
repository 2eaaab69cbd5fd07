"""`vlmtrain export`: the trained weights in a form that others load, with a check that they are the trained ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmdata.manifest import write_json_atomically
from vlmdata.shards import open_folder
from vlmtrain.backends import Backend, choose_backend
from vlmtrain.environment import describe_environment
from vlmtrain.inference import AnsweringModel, load_source, release_memory
from vlmtrain.merged_weights import MergedWeights, WeightSample, compare_weights, sample_merged_weights
from vlmtrain.parity import TOLERANCE, Parity, answer_logits, base_logits, compare_logits, require_parity
from vlmtrain.processors import save_processor
from vlmtrain.rows import open_rows, sample_indices
from vlmtrain.settings import ExportConfig
from vlmtrain.source import ModelSource, find_model

__all__ = ["describe_export", "export"]

REPORT = "export.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What is kept of the trained model when it has left the memory."""

    logits: list[Any]
    base: list[Any] | None
    weights: dict[str, WeightSample]


def export(name: str, config: ExportConfig) -> dict[str, Any]:
    """Writes an export, loads it again, and compares it with the trained model: weights, and logits on real rows.

    The reference is the trained adapter on the 16-bit base, also after training in 4 bit: merging goes into the
    unquantised weights.

    Args:
        name: A run, or a folder with an adapter or model.
        config: What to write.

    Returns:
        What was written to export.json.

    Raises:
        DataError: The export is not the trained model; it is left for inspection, without export.json.
        ToolkitError: Something is missing, in the way, or cannot be written.
    """
    source = find_model(name)
    if config.format == "adapter" and source.adapter is None:
        raise ConfigError(f"{name}: has no adapter to export (all weights were trained); use --format merged_16bit")
    rows = _check_rows(source, config)
    _check_out(source, config)
    backend, reason = choose_backend(config.backend)
    print(f"backend: {backend.NAME} ({reason})", flush=True)
    precision = _check_precision(source)
    trained = load_source(source, backend, load_in=precision)
    expected = _observe(trained, config, rows)
    # An earlier export stays until the new one can be written.
    _clear(config.out)
    _write(trained, config)
    del trained
    release_memory()
    exported = load_source(find_model(str(config.out)), backend, load_in=precision)
    merged = compare_weights(expected.weights, exported.loaded.model) if expected.weights else None
    parity = compare_logits(
        expected.logits, answer_logits(exported, rows), tolerance=TOLERANCE[config.format], base=expected.base
    )
    require_parity(parity, str(config.out))
    report = _report(name, source, config, backend, parity, merged)
    try:
        write_json_atomically(config.out / REPORT, report)
    except OSError as error:
        raise ResourceError(f"{config.out}: cannot be written: {error.strerror}") from error
    return report


def _observe(trained: AnsweringModel, config: ExportConfig, rows: list[dict[str, Any]]) -> _Trained:
    adapted = trained.loaded.source.adapter is not None
    return _Trained(
        logits=answer_logits(trained, rows),
        base=base_logits(trained, rows),
        weights=sample_merged_weights(trained.loaded.model) if adapted and config.format == "merged_16bit" else {},
    )


def _write(trained: AnsweringModel, config: ExportConfig) -> None:
    adapter = trained.loaded.source.adapter
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        if config.format == "merged_16bit":
            trained.backend.save_merged(trained.loaded, config.out)
        elif adapter is not None:
            shutil.copytree(adapter, config.out, dirs_exist_ok=True)
        save_processor(trained.loaded.source, config.out)
    except OSError as error:
        raise ResourceError(f"{config.out}: cannot be written: {error.strerror or error}") from error


def _check_precision(source: ModelSource) -> str:
    import torch

    # A CPU multiplies 32-bit weights faster, and the rounding of the export itself is then all that differs.
    if not torch.cuda.is_available():
        return "32bit"
    return "32bit" if source.trained_in == "32bit" else "16bit"


def _check_rows(source: ModelSource, config: ExportConfig) -> list[dict[str, Any]]:
    folder = open_folder(source.data_or(config.data))
    split = next(
        (folder.splits[s] for s in ("val", "test", "train") if s in folder.splits and len(folder.splits[s])), None
    )
    if split is None:
        raise DataError(f"{folder.path}: no rows to check the export on")
    decoded = open_rows(split)
    return [decoded[i] for i in sample_indices(split.num_rows, config.check_rows, seed=0)]


def _check_out(source: ModelSource, config: ExportConfig) -> None:
    """Refuses a folder whose content is not an earlier export, or is needed for this one."""
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError(f"{config.out}: is a file; name a folder to write")
    if not config.out.exists() or not any(config.out.iterdir()):
        return
    out = config.out.resolve()
    needed = (Path(source.name) if source.is_local else None, source.adapter, source.run)
    if any(place is not None and (place == out or out in place.parents) for place in needed):
        raise ConfigError(f"{config.out}: holds the model that is to be exported; choose another folder")
    if not config.overwrite:
        raise ConfigError(f"{config.out}: is not empty; --overwrite replaces an earlier export")
    known = (REPORT, "adapter_config.json", "config.json")
    if not any((config.out / file).is_file() for file in known):
        raise ConfigError(f"{config.out}: holds something else than an export; choose another folder")


def _clear(out: Path) -> None:
    try:
        if out.exists():
            shutil.rmtree(out)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be replaced: {error.strerror}") from error


def _report(
    name: str, source: ModelSource, config: ExportConfig, backend: Backend, parity: Parity, merged: MergedWeights | None
) -> dict[str, Any]:
    return {
        "model": name,
        "format": config.format,
        "base": {"name": source.name, "revision": source.revision},
        "backend": backend.NAME,
        "parity": parity.to_json(),
        "merged_weights": merged.to_json() if merged else None,
        "environment": describe_environment(),
    }


def describe_export(out: Path, report: dict[str, Any]) -> str:
    """What the check of an export found, in words."""
    parity, merged = report["parity"], report["merged_weights"]
    lines = [f"{out}: {report['format']}, checked on {parity['rows']} rows"]
    change = (
        "" if parity["training_change"] is None else f"; training had changed them by {parity['training_change']:.2%}"
    )
    lines.append(f"  logits differ from the trained model's by {parity['relative_error']:.3%}{change}")
    lines.append(f"  {parity['agreeing_tokens']} of {parity['clear_positions']} clear next tokens agree")
    if merged:
        lines.append(
            f"  weights of {merged['layers']} of {merged['layers']} adapted layers are base plus adapter "
            f"(in {merged['changed_layers']} the adapter is above rounding)"
        )
    return "\n".join(lines)
