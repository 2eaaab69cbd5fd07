"""Exports are the trained model, or are refused; and they replace nothing but earlier exports."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from made_rows import make_row, write_folder
from vlmdata.errors import ConfigError, DataError, MissingDependencyError, ResourceError
from vlmtrain import exports
from vlmtrain.backends import transformers as backend
from vlmtrain.base_identity import identify_base
from vlmtrain.export_folder import fresh_folder
from vlmtrain.exports import describe_export, export
from vlmtrain.inference import Request, load_answering_model
from vlmtrain.settings import ExportConfig
from vlmtrain.source import find_model
from vlmtrain.training import fit


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "export"


def export_run(run: Path, out: Path, **options) -> dict:
    return export(str(run), ExportConfig(out=out, backend="transformers", **options))


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def merged(lora_run, tmp_path_factory):
    """A merged export and its report."""
    out = tmp_path_factory.mktemp("merged") / "export"
    return out, export_run(lora_run, out)


def test_merged_weights_are_base_plus_adapter(merged, lora_run, tiny_qwen) -> None:
    out, report = merged
    base = AutoModelForImageTextToText.from_pretrained(tiny_qwen)
    expected = PeftModel.from_pretrained(base, lora_run / "adapter").merge_and_unload().state_dict()
    actual = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).state_dict()
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        # one rounding to bfloat16
        assert torch.allclose(actual[name], tensor, rtol=2**-8, atol=1e-6), name
    plain = AutoModelForImageTextToText.from_pretrained(tiny_qwen).state_dict()
    changed = [n for n in expected if not torch.allclose(plain[n], actual[n], rtol=2**-7, atol=1e-6)]
    assert len(changed) == report["merged_weights"]["layers"]


def test_a_merged_export_is_in_16_bit_and_needs_nothing_else(merged, tiny_qwen) -> None:
    out, _ = merged
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert not (out / "adapter_config.json").exists()
    # under the names that the model has on the hub
    assert set(load_file(out / "model.safetensors")) == set(load_file(tiny_qwen / "model.safetensors"))
    for name in ("tokenizer.json", "chat_template.jinja", "processor_config.json"):
        assert (out / name).read_text() == (tiny_qwen / name).read_text()
    assert json.loads((out / "tokenizer.json").read_text())["truncation"] is None


def test_the_report_of_an_export(merged, lora_run, tiny_qwen) -> None:
    out, report = merged
    assert json.loads((out / "export.json").read_text()) == json.loads(json.dumps(report))
    assert (report["format"], report["backend"]) == ("merged_16bit", "transformers")
    assert report["base"] == identify_base(find_model(str(tiny_qwen)))
    assert len(report["base"]["fingerprint"]) == 64
    assert report["adapted_layers"] == report["merged_weights"]["by_part"]
    assert report["adapted_layers"]["vision"] > 0
    assert sum(report["adapted_layers"].values()) == report["merged_weights"]["layers"]
    parity, weights = report["parity"], report["merged_weights"]
    assert parity["holds"]
    assert parity["rows"] == 6
    assert 0 < parity["relative_error"] < parity["training_change"] / 2
    assert parity["agreeing_tokens"] == parity["clear_positions"] > 0
    assert weights["changed_layers"] == weights["layers"] > 0
    words = describe_export(out, report)
    assert "merged_16bit, checked on 6 rows" in words
    assert f"of {weights['layers']} of {weights['layers']} adapted layers (" in words
    assert f"{report['adapted_layers']['vision']} vision) are base plus adapter" in words


def test_an_export_answers_as_the_run_does(full_run, out) -> None:
    report = export_run(full_run, out)
    assert report["merged_weights"] is None
    assert report["parity"]["training_change"] is None
    # the base is what was trained from, not the run's own folder
    assert report["base"] == json.loads((full_run / "run.json").read_text())["base"]
    model = load_answering_model(str(out))
    assert model.loaded.source.family is not None
    content = [{"type": "image"}, {"type": "text", "text": "Which colour is this?"}]
    request = Request(
        messages=[{"role": "user", "content": content}], images=[Image.new("RGB", (56, 56), (30, 30, 220))]
    )
    assert model.answer([request], max_new_tokens=8) == ["blue"]


def test_an_adapter_export_is_the_adapter_and_its_processor(lora_run, tiny_qwen, out) -> None:
    report = export_run(lora_run, out, format="adapter")
    assert report["parity"]["relative_error"] == 0
    assert report["merged_weights"] is None
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (lora_run / "adapter", out))
    assert all(before[name].equal(after[name]) for name in before)
    assert (out / "tokenizer.json").read_text() == (tiny_qwen / "tokenizer.json").read_text()
    assert find_model(str(out)).name == str(tiny_qwen.resolve())


def test_all_trained_weights_have_no_adapter(full_run, out) -> None:
    with pytest.raises(ConfigError, match=r"has no adapter to export .* use --format merged_16bit"):
        export_run(full_run, out, format="adapter")
    assert not out.exists()


def save_base(loaded, out: Path) -> None:
    """What Unsloth once did in silence: the merge is the base."""
    loaded.model.unload().to(torch.bfloat16).save_pretrained(out)


def test_an_export_that_lost_its_adapter_is_refused_by_its_weights(lora_run, out, monkeypatch) -> None:
    monkeypatch.setattr(backend, "save_merged", save_base)
    with pytest.raises(DataError, match=r"(\d+) of \1 adapted layers are not merged as trained, the first is model\."):
        export_run(lora_run, out)
    # left for inspection, and not as a whole export
    left = out.with_name(f".{out.name}.partial")
    assert (left / "model.safetensors").exists()
    assert not (left / "export.json").exists()
    assert not out.exists()


def test_an_export_that_lost_its_adapter_is_refused_by_its_logits(lora_run, out, monkeypatch) -> None:
    monkeypatch.setattr(backend, "save_merged", save_base)
    monkeypatch.setattr(exports, "sample_merged_weights", lambda _: {})
    with pytest.raises(
        DataError, match=r"is not the trained model: its logits differ by .* is left in .*\.export\.partial"
    ):
        export_run(lora_run, out)
    assert not out.exists()


def test_an_export_without_its_vision_adapter_is_refused(lora_run, out, monkeypatch) -> None:
    def save_without_vision(loaded, out: Path) -> None:
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name and ".visual." in name:
                parameter.data.zero_()
        backend_save(loaded, out)

    backend_save = backend.save_merged
    monkeypatch.setattr(backend, "save_merged", save_without_vision)
    with pytest.raises(DataError, match=r"adapted layers are not merged as trained, the first is model\.visual\."):
        export_run(lora_run, out)


def test_an_export_with_another_layer_scaled_is_refused(full_run, out, monkeypatch) -> None:
    def save_scaled(loaded, out: Path) -> None:
        backend_save(loaded, out)
        tensors = load_file(out / "model.safetensors")
        tensors["lm_head.weight"] = -tensors["lm_head.weight"]
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

    backend_save = backend.save_merged
    monkeypatch.setattr(backend, "save_merged", save_scaled)
    with pytest.raises(DataError, match="is not the trained model"):
        export_run(full_run, out)


def test_training_in_16_bit_exports_too(settings, out) -> None:
    run = fit(settings(load_in="16bit", max_steps=2))
    report = export_run(run.path, out)
    assert report["parity"]["holds"]
    assert report["merged_weights"]["wrong_layers"] == ()


def test_an_earlier_export_is_replaced_only_where_asked(lora_run, merged, tmp_path) -> None:
    out = shutil.copytree(merged[0], tmp_path / "export")
    (out / "old").touch()
    with pytest.raises(ConfigError, match="is not empty; --overwrite replaces an earlier export"):
        export_run(lora_run, out)
    assert (out / "old").exists()
    export_run(lora_run, out, format="adapter", overwrite=True)
    assert {"adapter_model.safetensors", "export.json"} <= files_in(out)
    assert not {"old", "model.safetensors"} & files_in(out)


def test_an_earlier_export_stays_until_there_is_a_new_one(lora_run, merged, tmp_path, monkeypatch) -> None:
    out = shutil.copytree(merged[0], tmp_path / "export")
    before = files_in(out)
    monkeypatch.setattr(exports, "load_source", lambda *_, **__: (_ for _ in ()).throw(DataError("no model")))
    with pytest.raises(DataError, match="no model"):
        export_run(lora_run, out, overwrite=True)
    assert files_in(out) == before


def test_a_folder_of_something_else_is_left_alone(lora_run, out) -> None:
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else than an export"):
        export_run(lora_run, out, overwrite=True)
    assert files_in(out) == {"thesis.tex"}
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        export_run(lora_run, out / "thesis.tex", overwrite=True)


def test_the_model_that_is_exported_is_left_alone(lora_run, full_run, tiny_qwen) -> None:
    for run, place in (
        (lora_run, tiny_qwen),
        (lora_run, tiny_qwen.parent),
        (lora_run, lora_run / "adapter"),
        (full_run, full_run / "model"),
        (full_run, full_run),
    ):
        before = files_in(place)
        with pytest.raises(ConfigError, match="holds the model that is to be exported; choose another folder"):
            export_run(run, place, overwrite=True)
        assert files_in(place) == before


def test_an_export_inside_the_run_is_fine(lora_run, tmp_path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    export_run(run, run / "export")
    assert find_model(str(run / "export")).adapter is None


def test_an_empty_folder_may_be_written_to(lora_run, out) -> None:
    out.mkdir()
    assert export_run(lora_run, out, check_rows=2)["parity"]["rows"] == 2


def test_rows_to_check_on_have_to_be_known(lora_run, out, build) -> None:
    with pytest.raises(ConfigError, match="--data is missing"):
        export_run(lora_run / "adapter", out)
    assert not out.exists()
    report = export_run(lora_run / "adapter", out, data=build([make_row(i) for i in range(3)]))
    assert report["parity"]["rows"] == 3
    with pytest.raises(DataError, match="no rows to check the export on"):
        export_run(lora_run, out / "other", data=write_folder(out.parent / "empty", {"train": []}))


def test_an_export_carries_its_card(merged, lora_run) -> None:
    out, report = merged
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert f"{report['parity']['relative_error']:.3%}" in card.content
    assert report["data_fingerprint"] in card.content
    assert str(lora_run.parent) not in card.content


def test_an_export_made_before_is_only_uploaded(merged, lora_run, monkeypatch, capsys) -> None:
    out, report = merged
    uploads = []
    monkeypatch.setattr(exports, "check_upload", lambda *_, **__: None)
    monkeypatch.setattr(exports, "upload_export", lambda *given, **how: uploads.append((given, how)) or "http://hub/c")
    again = export_run(lora_run, out, push="ann/colours")
    assert uploads == [((out, "ann/colours"), {"public": False})]
    assert again == json.loads(json.dumps(report))
    assert "is this export already, and only uploaded\npushed: http://hub/c\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is not empty"):
        export_run(lora_run, out, push="ann/colours", format="adapter")


def test_a_full_disk_is_one_line_and_leaves_nothing(lora_run, merged, tmp_path) -> None:
    out = shutil.copytree(merged[0], tmp_path / "export")
    before = files_in(out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a file that may not grow fails as on a full disk; the processor's files still fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="export: cannot be written: "):
            export_run(lora_run, out, overwrite=True, check_rows=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_interrupted_export_leaves_the_earlier_one(lora_run, merged, tmp_path, monkeypatch) -> None:
    out = shutil.copytree(merged[0], tmp_path / "export")
    before = files_in(out)
    monkeypatch.setattr(backend, "save_merged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export_run(lora_run, out, overwrite=True, check_rows=1)
    assert files_in(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_4_bit_export_is_rounded_again_and_says_so(full_run, lora_run, out, monkeypatch, capsys) -> None:
    with pytest.raises(MissingDependencyError, match="--format merged_4bit needs a GPU, and none is visible"):
        export_run(full_run, out, format="merged_4bit")
    # bitsandbytes' 4-bit layers run on a CPU too, only slowly; the refusal is what is taken away here
    monkeypatch.setattr("vlmtrain.precision.can_quantise", lambda: True)
    monkeypatch.setattr("vlmtrain.export_task.can_quantise", lambda: True)
    report = export_run(full_run, out, format="merged_4bit")
    assert "4-bit weights are rounded a second time after merging" in capsys.readouterr().out
    assert files_in(out) >= {"config.json", "model.safetensors", "processor_config.json", "export.json", "README.md"}
    assert not (out / "merged").exists()
    parity, before = report["parity"], report["merged_parity"]
    assert parity["holds"]
    # rounded by more than the 16-bit model that it was made of
    assert parity["relative_error"] > 3 * before["relative_error"]
    assert report["drift"]["trained_in"] == "32bit"
    assert report["drift"]["exported_in"] == "4bit"
    assert report["drift"]["metrics"]["exact_match"]["base"] == 1.0
    tensors = load_file(out / "model.safetensors")
    packed = {name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.dtype == torch.uint8}
    assert any("language_model" in name or "layers" in name for name in packed)
    assert not any("visual" in name or "lm_head" in name for name in packed)
    assert find_model(str(out)).config["quantization_config"]["llm_int8_skip_modules"] == ["model.visual", "lm_head"]
    assert "rounded a second time" in (out / "README.md").read_text()
    model = load_answering_model(str(out))
    assert model.loaded.load_in == "4bit"
    monkeypatch.undo()
    with pytest.raises(MissingDependencyError, match="weights are stored in 4bit, which needs a GPU"):
        load_answering_model(str(out))


def test_a_run_trained_in_another_precision_reports_its_drift(lora_run, tmp_path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    trained = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(trained | {"load_in": "16bit"}))
    for name in ("eval-val.html", "rank-train.jsonl", "README.md", "training_args.bin"):
        (run / "adapter" / name).write_text("rows and paths")
    report = export_run(run, tmp_path / "out", format="adapter", drift_rows=4, metrics=("cer",))
    assert not {"eval-val.html", "rank-train.jsonl", "training_args.bin"} & files_in(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() != "rows and paths"
    drift = report["drift"]
    assert (drift["trained_in"], drift["exported_in"], drift["rows"], drift["split"]) == ("16bit", "32bit", 4, "val")
    cell = drift["metrics"]["cer"]
    assert cell["difference"] == pytest.approx(cell["value"] - cell["base"])
    words = describe_export(tmp_path / "out", report)
    assert f"drift to the run in 16bit: {drift['same_answers']} of 4 answers of val are the same" in words
    assert report["adapted_layers"]["vision"] > 0
    assert "adapters of " in words


def test_the_working_directory_may_be_the_export(tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with fresh_folder(Path()) as folder:
        (folder / "new").touch()
    monkeypatch.chdir(tmp_path)
    assert files_in(tmp_path) == {"here/new"}


def test_what_an_earlier_export_left_behind_goes(tmp_path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").touch()
    (tmp_path / ".out.old").mkdir()
    with fresh_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert files_in(tmp_path / "out") == {"new"}
