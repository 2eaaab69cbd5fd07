"""README.md of an export: what it was made from, what it scores, and what was checked, as the hub reads model cards.

No path of this machine and no row of the set goes into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdata.manifest import Manifest
from vlmtrain.drift import describe_drift
from vlmtrain.json_files import read_object
from vlmtrain.metrics import METRICS
from vlmtrain.quantised_export import WARNING
from vlmtrain.source import ModelSource

__all__ = ["base_licence", "describe_checks", "read_scores", "write_model_card"]

CARD = "README.md"
_RELATION = {"adapter": "adapter", "merged_16bit": "finetune", "merged_4bit": "quantized", "gguf": "quantized"}
_PRIVATE_SETTINGS = ("data", "model", "out")
"""Settings that hold paths."""
_FAMILY_NOTES = {
    "gemma3": "Gemma is provided under and subject to the Gemma Terms of Use (ai.google.dev/gemma/terms); pass them on "
    "with the model, with the use restrictions.",
    "llama3.2-vision": "Built with Llama: the Llama 3.2 Community License asks for these words, for a model name that "
    "begins with Llama, and for a copy of the licence; its vision models are not licensed to people and companies in "
    "the European Union.",
    "llava-1.5": "LLaVA 1.5 is made of Llama 2 (Vicuna) and was trained on GPT-4 output; both set terms of their own.",
}


def base_licence(base: Mapping[str, Any]) -> dict[str, Any]:
    """The licence that the base's own card names: `license` and, where there, `license_name` and `license_link`.

    Args:
        base: From `identify_base`.
    """
    from huggingface_hub import ModelCard, try_to_load_from_cache
    from yaml import YAMLError

    if _is_local(base):
        path = Path(base["name"]) / CARD
    else:
        cached = try_to_load_from_cache(base["name"], CARD, revision=base["revision"])
        path = Path(cached) if isinstance(cached, str) else _download_card(base)
    if not path.is_file():
        return {}
    try:
        data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):
        # A base's card is its author's; without a readable one the licence is not known, and the card says so.
        return {}
    return {key: data[key] for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)}


def _is_local(base: Mapping[str, Any]) -> bool:
    return Path(base["name"]).is_absolute()


def _download_card(base: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base["name"], CARD, revision=base["revision"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return Path(CARD).absolute() / "absent"


def write_model_card(
    out: Path,
    report: Mapping[str, Any],
    *,
    source: ModelSource,
    manifest: Manifest,
    run: Mapping[str, Any] | None,
    scores: Mapping[str, Mapping[str, Any]],
    licence: Mapping[str, Any],
    title: str,
) -> None:
    """Writes README.md.

    Args:
        out: The export's folder.
        report: What goes to export.json.
        source: The trained model.
        manifest: Of the set whose rows the export was checked on.
        run: run.json, where the export comes from a run.
        scores: eval-SPLIT.json by split, as far as the run was evaluated.
        licence: From `base_licence`, or the user's own.
        title: Name of the model.

    Raises:
        OSError: It cannot be written.
    """
    from huggingface_hub import ModelCard

    data = _metadata(report, source, scores, licence, title)
    sections = [
        f"# {title}",
        _what_it_is(report),
        "## Use\n\n" + _usage(report),
        "## Training data\n\n" + "\n".join(_data_lines(manifest, run)),
        "## Settings\n\n" + _settings(run),
        "## Scores\n\n" + "\n".join(_score_lines(scores)),
        "## Checks of this export\n\n" + "\n".join(f"- {line.strip()}" for line in describe_checks(report)),
        "## Licence\n\n" + "\n".join(_licence_lines(source, licence)),
        "## Versions\n\n" + ", ".join(f"{n} {v}" for n, v in report["environment"]["packages"].items() if v),
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    ModelCard(text)  # raises on front matter that the hub would refuse to read
    (out / CARD).write_text(text, encoding="utf-8")


def _metadata(
    report: Mapping[str, Any],
    source: ModelSource,
    scores: Mapping[str, Mapping[str, Any]],
    licence: Mapping[str, Any],
    title: str,
) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type="private",
            dataset_name=f"fingerprint {str(result['data_fingerprint'])[:12]}",
            dataset_split=split,
            metric_type=name,
            metric_name=METRICS[name].title if name in METRICS else name,
            metric_value=round(cell["value"], 4),
        )
        for split, result in scores.items()
        for name, cell in result["scores"].items()
    ]
    library = {"adapter": "peft", "gguf": None}.get(report["format"], "transformers")
    tags = ["vlmtrain", *([source.family.name] if source.family else []), *(["lora"] if source.adapter else [])]
    base, relation = report["base"], _RELATION[report["format"]]
    on_hub = {} if _is_local(base) else {"base_model": base["name"], "base_model_relation": relation}
    return ModelCardData(
        model_name=title,
        library_name=library,
        pipeline_tag="image-text-to-text",
        tags=tags,
        eval_results=results or None,
        **on_hub,
        **licence,
    )


def _base_name(base: Mapping[str, Any]) -> str:
    if _is_local(base):
        return f"a local model ({Path(base['name']).name})"
    return f"[{base['name']}](https://huggingface.co/{base['name']})"


def _what_it_is(report: Mapping[str, Any]) -> str:
    base = report["base"]
    told_by = base.get("commit") or base.get("fingerprint")
    kind = {
        "adapter": "A LoRA adapter for",
        "merged_16bit": "A fine-tuned whole model in 16 bit, made from",
        "merged_4bit": "A fine-tuned whole model with its language model in 4 bit (NF4), made from",
        "gguf": "A fine-tuned whole model for llama.cpp, made from",
    }[report["format"]]
    named = f" at {'commit' if base.get('commit') else 'fingerprint'} `{told_by[:12]}`" if told_by else ""
    warning = f"\n\n**{WARNING}.**" if report["format"] == "merged_4bit" else ""
    trained = f" Trained in {report['trained_in']}." if report.get("trained_in") else ""
    return f"{kind} {_base_name(base)}{named}.{trained}{warning}"


def _usage(report: Mapping[str, Any]) -> str:
    if report["format"] == "gguf":
        files = report["gguf"]
        return f"```\nllama-mtmd-cli -m {files['model']} --mmproj {files['projector']} --image FILE -p PROMPT\n```"
    load = 'model = AutoModelForImageTextToText.from_pretrained(PATH, dtype="auto", device_map="auto")'
    extra = ""
    if report["format"] == "adapter":
        base = "BASE" if _is_local(report["base"]) else f'"{report["base"]["name"]}"'
        revision = f', revision="{report["base"]["commit"]}"' if report["base"].get("commit") else ""
        load = f'model = AutoModelForImageTextToText.from_pretrained({base}{revision}, dtype="auto", device_map="auto")'
        load += "\nmodel = PeftModel.from_pretrained(model, PATH)"
        extra = "from peft import PeftModel\n"
    imports = "from transformers import AutoModelForImageTextToText, AutoProcessor"
    return f"```python\n{extra}{imports}\n\n{load}\nprocessor = AutoProcessor.from_pretrained(PATH)\n```"


def _data_lines(manifest: Manifest, run: Mapping[str, Any] | None) -> Iterator[str]:
    trained_on = run["data_fingerprint"] if run else None
    yield f"- fingerprint: `{trained_on or manifest.fingerprint}`"
    if trained_on is None:
        yield "- this is the set that the export was checked on; what it was trained on is not recorded"
    if trained_on in (None, manifest.fingerprint):
        yield f"- rows: {', '.join(f'{name} {split.rows}' for name, split in manifest.splits.items())}"
        counts = manifest.counts
        yield f"- read {counts.read}, kept {counts.kept}, rejected {counts.read - counts.kept}"


def _settings(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return "Not recorded: the export was made from an adapter or model, not from a run."
    import yaml

    shown = {
        key: value
        for key, value in run["config"].items()
        if value is not None and key not in _PRIVATE_SETTINGS and not str(value).startswith(("/", "~", "."))
    }
    best = ""
    if run.get("best_value") is not None:
        best = f"\n\nBest {run['best_metric']} on the val rows: {run['best_value']:.4f}"
        best += f" at step {run['best_step']} of {run['steps']}" if run.get("best_step") is not None else ""
    return f"```yaml\n{yaml.safe_dump(shown, sort_keys=False).strip()}\n```{best}"


def _score_lines(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not scores:
        yield "None: the run was exported before `vlmtrain eval`."
        return
    yield "| split | rows | weights | metric | score | 95 % interval | always the commonest answer |"
    yield "|---|---|---|---|---|---|---|"
    for split, result in scores.items():
        for name, cell in result["scores"].items():
            majority = result.get("majority", {}).get("scores", {}).get(name)
            always = "" if majority is None else f"{majority['value']:.3f}"
            yield (
                f"| {split} | {result['rows']} | {result['load_in']} | {name} | {cell['value']:.3f} | "
                f"{cell['low']:.3f} to {cell['high']:.3f} | {always} |"
            )


def _licence_lines(source: ModelSource, licence: Mapping[str, Any]) -> Iterator[str]:
    if licence:
        named = licence.get("license_name") or licence["license"]
        yield f"{named}" + (f" ({licence['license_link']})" if licence.get("license_link") else "") + "."
    else:
        yield "The base's card names no licence. Look its terms up before this model is passed on."
    yield "The terms of the training data apply too; they are not known to the program that wrote this card."
    if source.family and source.family.name in _FAMILY_NOTES:
        yield _FAMILY_NOTES[source.family.name]


def describe_checks(report: Mapping[str, Any]) -> Iterator[str]:
    """What the checks of an export found, a line each."""
    parity, merged, files = report["parity"], report["merged_weights"], report.get("gguf")
    of = " of the merged 16-bit model" if files else ""
    by_training = parity["training_change"]
    change = "" if by_training is None else f"; training had changed them by {by_training:.2%}"
    error = f"{parity['relative_error']:.3%}"
    yield f"logits{of} on {parity['rows']} rows differ from the trained model's by {error}{change}"
    yield f"{parity['agreeing_tokens']} of {parity['clear_positions']} clear next tokens agree"
    parts = ", ".join(f"{count} {part}" for part, count in sorted(report["adapted_layers"].items()))
    if merged:
        yield (
            f"weights of {merged['layers']} of {merged['layers']} adapted layers ({parts}) are base plus adapter "
            f"(in {merged['changed_layers']} the adapter is above rounding)"
        )
    elif parts:
        yield f"adapters of {sum(report['adapted_layers'].values())} layers are there ({parts})"
    if files:
        yield (
            f"{files['trained_layers_found']} of {files['trained_layers']} trained layers are in the GGUF files, "
            f"value for value before quantising; {files['vision_blocks']} layers of the vision tower are in "
            f"{files['projector']}"
        )
    if report.get("drift"):
        yield from describe_drift(report["drift"])


def read_scores(run: Path | None) -> dict[str, dict[str, Any]]:
    """The results of `vlmtrain eval` in a run's folder, by split; scores of a set that is gone still count."""
    if run is None:
        return {}
    found = {}
    for path in sorted(run.glob("eval-*.json")):
        result = read_object(path)
        found[str(result["split"])] = result
    return found
