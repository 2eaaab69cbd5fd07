"""`vlmtrain export`: the trained weights in a form that others load, with a check that they are the trained ones.

Every form but the adapter goes through the merged 16-bit model, which is checked weight by weight and by its logits;
4-bit and GGUF are made from it. The folder appears when all checks have passed, with export.json in it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmdata.manifest import write_json_atomically
from vlmtrain.base_identity import identify_base, pin_base
from vlmtrain.device import half_precision
from vlmtrain.drift import compare_answers
from vlmtrain.environment import describe_environment
from vlmtrain.export_folder import fresh_folder, saved_or_full
from vlmtrain.export_task import ExportTask, prepare_export
from vlmtrain.gguf_export import write_gguf
from vlmtrain.hub_upload import check_upload, upload_export
from vlmtrain.inference import AnsweringModel, load_source, release_memory
from vlmtrain.json_files import read_object
from vlmtrain.layers import part_of
from vlmtrain.merged_weights import WeightSample, compare_weights, sample_merged_weights, sum_squares
from vlmtrain.model_card import base_licence, describe_checks, read_scores, write_model_card
from vlmtrain.parity import TOLERANCE, Parity, answer_logits, base_logits, compare_logits, require_parity
from vlmtrain.processors import save_processor
from vlmtrain.quantised_export import quantise_folder
from vlmtrain.settings import ExportConfig
from vlmtrain.source import EXPORT_FILE, RESULT_PATTERNS, RUN_FILE, ModelSource, find_model

__all__ = ["describe_export", "export"]

# results hold rows of the set, and trl's pickled arguments paths of this machine
_NOT_EXPORTED = (EXPORT_FILE, *RESULT_PATTERNS, "README.md", "training_args.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What is kept of the trained model when it has left the memory."""

    logits: list[Any]
    base: list[Any] | None
    weights: dict[str, WeightSample]


def export(name: str, config: ExportConfig) -> dict[str, Any]:
    """Writes an export, loads it again, and compares it with the trained model: weights, and logits on real rows.

    The reference is the trained adapter on the 16-bit base, also after training in 4 bit: merging goes into the
    unquantised weights. What that changes is measured as drift.

    Args:
        name: A run, or a folder with an adapter or model.
        config: What to write.

    Returns:
        What was written to export.json.

    Raises:
        DataError: The export is not the trained model; what was written is left beside --out for inspection.
        ToolkitError: Something is missing, in the way, or cannot be written.
    """
    if (finished := _finished(name, config)) is None:
        task = prepare_export(name, config)
        with fresh_folder(config.out) as folder:
            finished = _make(task, folder)
            # the last file of the folder: where it is, the export is whole
            with saved_or_full(config.out):
                write_json_atomically(folder / EXPORT_FILE, finished)
    if config.push:
        address = upload_export(config.out, config.push, public=config.public)
        print(f"pushed: {address}", flush=True)
    return finished


def _finished(name: str, config: ExportConfig) -> dict[str, Any] | None:
    """The report of the same export made before, where only the upload is left to do."""
    path = config.out / EXPORT_FILE
    if not config.push or config.overwrite or not path.is_file():
        return None
    report = read_object(path)
    if (report.get("model"), report.get("format")) != (name, config.format):
        return None
    if config.format == "gguf" and not report["gguf"]["model"].endswith(f"-{config.gguf_type.upper()}.gguf"):
        return None
    trained = Path(name) / RUN_FILE
    if trained.is_file() and trained.stat().st_mtime > path.stat().st_mtime:
        # the run was trained anew since: what lies here are the weights of the one before
        return None
    check_upload(config.push, public=config.public)
    print(f"{config.out}: is this export already, and only uploaded", flush=True)
    return report


def _make(task: ExportTask, folder: Path) -> dict[str, Any]:
    """Writes, checks and describes one export in `folder`."""
    derived = task.config.format in ("merged_4bit", "gguf")
    whole = folder / "merged" if derived else folder
    expected = _write_plain(task, whole)
    exported = load_source(find_model(str(whole)), task.backend, load_in=task.precision)
    merged = compare_weights(expected.weights, exported.loaded.model) if expected.weights else None
    form = "adapter" if task.config.format == "adapter" else "merged_16bit"
    parity = compare_logits(
        expected.logits, answer_logits(exported, task.rows), tolerance=TOLERANCE[form], base=expected.base
    )
    require_parity(parity, str(task.config.out))
    report: dict[str, Any] = {
        "model": task.name,
        "format": task.config.format,
        "base": _base_of(task.source),
        "trained_in": task.source.trained_in,
        "backend": task.backend.NAME,
        "data_fingerprint": task.folder.manifest.fingerprint,
        "adapted_layers": _adapted_layers(exported, expected),
        "merged_weights": merged.to_json() if merged else None,
    }
    if task.config.format == "gguf":
        squares = sum_squares(exported.loaded.model, _changed_layers(expected))
        answers = _drift_answers(task, exported)
        del exported
        release_memory()
        report["gguf"] = _write_gguf(task, whole, folder, squares)
    elif task.config.format == "merged_4bit":
        del exported
        release_memory()
        exported, parity = _write_4bit(task, whole, folder, expected, parity, report)
        answers = _drift_answers(task, exported)
        del exported
    else:
        answers = _drift_answers(task, exported)
        del exported
    release_memory()
    if derived:
        shutil.rmtree(whole)
    report["parity"] = parity.to_json()
    report["drift"] = _measure_drift(task, answers)
    report["environment"] = describe_environment()
    _write_card(task, folder, report)
    return report


def _base_of(source: ModelSource) -> dict[str, Any]:
    """The base; where all weights were trained, what the run recorded of it."""
    if source.adapter is None and source.recorded_base:
        return {"name": "", "revision": None, "commit": None, "fingerprint": None} | source.recorded_base
    return identify_base(source)


def _write_plain(task: ExportTask, out: Path) -> _Trained:
    """The adapter, or the merged 16-bit model, from the trained one; and what to hold it to."""
    trained = load_source(task.source, task.backend, load_in=task.precision)
    adapter = task.source.adapter
    as_adapter = task.config.format == "adapter"
    expected = _Trained(
        logits=answer_logits(trained, task.rows),
        base=base_logits(trained, task.rows),
        weights=sample_merged_weights(trained.loaded.model) if adapter is not None and not as_adapter else {},
    )
    with saved_or_full(task.config.out):
        out.mkdir(parents=True, exist_ok=True)
        if not as_adapter:
            trained.backend.save_merged(trained.loaded, out)
        elif adapter is not None:
            shutil.copytree(adapter, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_EXPORTED))
            pin_base(out, identify_base(task.source))
        save_processor(task.source, out)
    del trained
    release_memory()
    return expected


def _adapted_layers(exported: AnsweringModel, expected: _Trained) -> dict[str, int]:
    """How many layers carry an adapter, by part: those that were merged, or those in the exported adapter."""
    if expected.weights:
        return dict(Counter(part_of(name) for name in expected.weights))
    if exported.loaded.source.adapter is None:
        return {}
    names = (name for name, _ in exported.loaded.model.named_modules() if name.endswith(".lora_A"))
    return dict(Counter(part_of(name) for name in names))


def _changed_layers(expected: _Trained) -> set[str] | None:
    """The layers that training changed; None where all weights were trained."""
    if not expected.weights:
        return None
    return {name for name, sample in expected.weights.items() if bool(sample.change.any())}


def _write_gguf(task: ExportTask, whole: Path, folder: Path, squares: dict[str, float]) -> dict[str, Any]:
    if task.llama_cpp is None:
        raise ConfigError("--format gguf needs llama.cpp")
    config = task.config
    with saved_or_full(config.out):
        files = write_gguf(
            task.llama_cpp,
            whole,
            folder,
            stem=task.title,
            gguf_type=config.gguf_type,
            weight_squares=squares,
            # where all weights were trained, so was LLaVA's last vision layer, which nothing reads and llama.cpp drops
            may_lack=0.0 if task.source.adapter else 0.1,
        )
    return files.to_json()


def _write_4bit(
    task: ExportTask, whole: Path, folder: Path, expected: _Trained, merged: Parity, report: dict[str, Any]
) -> tuple[AnsweringModel, Parity]:
    """The 4-bit model in `folder`, loaded; the parity of the model it was made of goes into the report."""
    with saved_or_full(task.config.out):
        quantise_folder(whole, folder, dtype=half_precision())
        save_processor(task.source, folder)
    release_memory()
    exported = load_source(find_model(str(folder)), task.backend, load_in="4bit")
    logits = answer_logits(exported, task.rows)
    tolerance = TOLERANCE["merged_4bit"]
    parity = compare_logits(expected.logits, logits, tolerance=tolerance, base=expected.base, quantised=True)
    require_parity(parity, str(task.config.out))
    report["merged_parity"] = merged.to_json()
    return exported, parity


def _drift_answers(task: ExportTask, exported: AnsweringModel) -> tuple[str, list[str]] | None:
    if task.drift_set is None:
        return None
    return exported.loaded.load_in, task.drift_set.answer(exported)


def _measure_drift(task: ExportTask, answers: tuple[str, list[str]] | None) -> dict[str, Any] | None:
    if answers is None or task.drift_set is None:
        return None
    trained = load_source(task.source, task.backend, load_in=task.source.trained_in or task.precision)
    exported_in, exported = answers
    drift = compare_answers(
        task.drift_set,
        exported=exported,
        trained=task.drift_set.answer(trained),
        exported_in=exported_in,
        trained_in=trained.loaded.load_in,
        metrics=task.config.metrics,
    )
    del trained
    release_memory()
    return drift


def _write_card(task: ExportTask, folder: Path, report: dict[str, Any]) -> None:
    run = task.source.run
    own = {"license": task.config.license} if task.config.license else None
    with saved_or_full(task.config.out):
        write_model_card(
            folder,
            report,
            source=task.source,
            manifest=task.folder.manifest,
            run=read_object(run / RUN_FILE) if run else None,
            scores=read_scores(run),
            licence=own or base_licence(report["base"]),
            title=task.title,
        )


def describe_export(out: Path, report: dict[str, Any]) -> str:
    """What the checks of an export found, in words."""
    lines = [f"{out}: {report['format']}, checked on {report['parity']['rows']} rows"]
    return "\n".join([*lines, *(f"  {line}" for line in describe_checks(report))])
