"""The card of an export: front matter that the hub's library reads, figures, and nothing private."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from vlmdata.families import FAMILIES
from vlmdata.manifest import Counts, Manifest, SplitEntry
from vlmtrain.model_card import base_licence, write_model_card
from vlmtrain.source import ModelSource

PRIVATE = "/home/ann/secret"
PARITY = {"rows": 8, "relative_error": 0.0031, "training_change": 0.21, "clear_positions": 40, "agreeing_tokens": 40}
SCORE = {"value": 0.9512, "low": 0.9, "high": 0.99, "rows": 60}
DRIFT_CELL = {"value": 0.9, "base": 0.95, "difference": -0.05, "low": -0.1, "high": 0.0}


def make_source(**given) -> ModelSource:
    values = {"name": f"{PRIVATE}/base", "revision": None, "adapter": Path(PRIVATE), "processor": PRIVATE, "config": {}}
    return ModelSource(**(values | {"family": FAMILIES["qwen2.5-vl"]} | given))


def make_report(**given) -> dict:
    report = {
        "model": f"{PRIVATE}/run",
        "format": "merged_16bit",
        "base": {"name": f"{PRIVATE}/base", "revision": None, "commit": None, "fingerprint": "f" * 64},
        "trained_in": "4bit",
        "parity": PARITY,
        "merged_weights": {"layers": 24, "changed_layers": 24},
        "adapted_layers": {"vision": 10, "language": 14},
        "drift": {"split": "val", "rows": 60, "exported_in": "16bit", "trained_in": "4bit", "same_answers": 55,
                  "metrics": {"exact_match": DRIFT_CELL}},
        "environment": {"packages": {"torch": "2.14.1", "unsloth": None}},
    }  # fmt: skip
    return report | given


RUN: dict = {"config": {"data": PRIVATE, "model": PRIVATE, "out": PRIVATE, "r": 16, "lr": None}}
RUN["config"]["cache"] = f"{PRIVATE}/cache"
RUN["data_fingerprint"] = "d" * 64
RUN |= {"best_metric": "loss", "best_value": 0.1234, "best_step": 40, "steps": 60}
MANIFEST = Manifest(
    splits={"train": SplitEntry(rows=900, shards=())}, counts=Counts(read=1000, kept=900), fingerprint="d" * 64
)
SCORES = {"val": {"rows": 60, "load_in": "16bit", "data_fingerprint": "d" * 64, "scores": {"exact_match": SCORE},
                  "majority": {"answer": "x", "scores": {"exact_match": {"value": 0.4}}}}}  # fmt: skip


def write(tmp_path: Path, **given) -> tuple[ModelCard, str]:
    arguments = {"report": make_report(), "source": make_source(), "run": RUN, "scores": SCORES, "licence": {}}
    arguments |= {"manifest": MANIFEST, "title": "colours"} | given
    write_model_card(tmp_path, arguments.pop("report"), **arguments)
    card = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    return card, card.content


def test_a_card_has_the_figures_and_nothing_private(tmp_path) -> None:
    card, text = write(tmp_path)
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == ("image-text-to-text", "transformers")
    assert {"vlmtrain", "lora", "qwen2.5-vl"} <= set(data["tags"])
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("exact_match", 0.9512, "val")
    # a base in a folder cannot be linked
    assert "base_model" not in data
    assert "a local model (base) at fingerprint `ffffffffffff`" in text
    for figure in ("0.310%", "21.00%", "40 of 40", "10 vision", "0.951", "0.400", "-0.050", "55 of 60", "d" * 64,
                   "train 900", "rejected 100", "Best loss on the val rows: 0.1234 at step 40 of 60",
                   "r: 16", "torch 2.14.1"):  # fmt: skip
        assert figure in text, figure
    assert "names no licence" in text
    assert PRIVATE not in text


@pytest.mark.parametrize(
    ("form", "relation", "library"),
    [("adapter", "adapter", "peft"), ("merged_16bit", "finetune", "transformers"),
     ("merged_4bit", "quantized", "transformers"), ("gguf", "quantized", None)],
)  # fmt: skip
def test_a_hub_base_is_linked_as_what_the_export_is_to_it(form, relation, library, tmp_path) -> None:
    base = {"name": "Qwen/Qwen2.5-VL-3B-Instruct", "revision": None, "commit": "c" * 40, "fingerprint": None}
    files = {"model": "a.gguf", "projector": "mmproj-a.gguf", "vision_blocks": 4}
    files |= {"trained_layers": 24, "trained_layers_found": 24}
    report = make_report(format=form, base=base, gguf=files if form == "gguf" else None, drift=None)
    licence = {"license": "other", "license_name": "qwen-research", "license_link": "https://example.org/LICENSE"}
    card, text = write(tmp_path, report=report, source=make_source(name=base["name"]), licence=licence)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (base["name"], relation)
    assert data.get("library_name") == library
    assert data["license_name"] == "qwen-research"
    assert "qwen-research (https://example.org/LICENSE)." in text
    assert "commit `cccccccccccc`" in text
    assert ("rounded a second time" in text) == (form == "merged_4bit")


def test_families_with_terms_of_their_own_get_a_note(tmp_path) -> None:
    _, text = write(tmp_path, source=make_source(family=FAMILIES["llama3.2-vision"]))
    assert "Built with Llama" in text
    _, text = write(tmp_path, source=make_source(family=FAMILIES["gemma3"]), run=None, scores={})
    assert "Gemma Terms of Use" in text
    assert "what it was trained on is not recorded" in text
    assert "exported before `vlmtrain eval`" in text


def test_the_licence_is_that_of_the_bases_card(tmp_path) -> None:
    base = {"name": str(tmp_path), "revision": None}
    assert base_licence(base) == {}
    (tmp_path / "README.md").write_text("---\nlicense: gemma\nlicense_link: https://l\ntags: [a]\n---\n# Base\n")
    assert base_licence(base) == {"license": "gemma", "license_link": "https://l"}
    (tmp_path / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert base_licence(base) == {}


def test_front_matter_is_json_too(tmp_path) -> None:
    card, _ = write(tmp_path)
    json.dumps(card.data.to_dict())
