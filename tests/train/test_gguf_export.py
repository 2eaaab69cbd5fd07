"""GGUF exports through a llama.cpp folder: called as it wants to be, read back, and refused where the model is lost."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForImageTextToText

from vlmdata.errors import ConfigError, DataError, MissingDependencyError
from vlmtrain.exports import describe_export, export
from vlmtrain.gguf_export import GgufFiles, LlamaCpp, find_llama_cpp, write_gguf
from vlmtrain.inference import load_answering_model
from vlmtrain.merged_weights import sum_squares
from vlmtrain.settings import ExportConfig

STAND_IN = Path(__file__).with_name("llama_cpp_stand_in.py")


@pytest.fixture
def llama_cpp(tmp_path) -> Path:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    shutil.copy(STAND_IN, folder / "convert_hf_to_gguf.py")
    return folder


@pytest.fixture(scope="module")
def merged(lora_run, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A merged model, and the squares of the layers that training changed."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    report = export(str(lora_run), ExportConfig(out=folder, backend="transformers", check_rows=1))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    base = AutoModelForImageTextToText.from_pretrained(report["base"]["name"]).to(torch.bfloat16).float()
    before, after = sum_squares(base, None), sum_squares(model, None)
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert len(changed) == report["merged_weights"]["layers"]
    return folder, changed


def add_quantizer(folder: Path) -> None:
    """A llama-quantize that notes what it is asked and copies the file."""
    program = folder / "build" / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$3" > {folder}/quantised\ncp "$1" "$2"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_both_files_hold_the_trained_model(lora_run, llama_cpp, tmp_path) -> None:
    out = tmp_path / "colours"
    report = export(str(lora_run), ExportConfig(out=out, format="gguf", llama_cpp=llama_cpp, backend="transformers"))
    files = {path.name for path in out.iterdir()}
    assert files == {"colours-BF16.gguf", "mmproj-colours-BF16.gguf", "README.md", "export.json"}
    found = report["gguf"]
    assert found["trained_layers_found"] == found["trained_layers"] == report["merged_weights"]["layers"] > 0
    assert (found["architecture"], found["vision_blocks"]) == ("qwen2vl", 2)
    assert found["model_tensors"] == len(GGUFReader(out / "colours-BF16.gguf").tensors)
    calls = [json.loads(line) for line in (llama_cpp / "calls.jsonl").read_text().splitlines()]
    assert ["--mmproj" in arguments for arguments, _ in calls] == [False, True]
    assert all(offline == "1" for _, offline in calls)
    assert report["parity"]["holds"]
    assert "trained layers are in the GGUF files" in describe_export(out, report)
    card = (out / "README.md").read_text()
    assert "llama-mtmd-cli -m colours-BF16.gguf --mmproj mmproj-colours-BF16.gguf" in card
    with pytest.raises(ConfigError, match=r"a GGUF export is for llama\.cpp: llama-mtmd-cli"):
        load_answering_model(str(out))


def write(merged, llama_cpp: LlamaCpp, out: Path, gguf_type: str = "bf16") -> GgufFiles:
    folder, squares = merged
    arguments = {"stem": "out", "gguf_type": gguf_type, "weight_squares": squares, "may_lack": 0.0}
    return write_gguf(llama_cpp, folder, out, **arguments)


def test_narrower_types_are_made_by_llama_quantize(merged, llama_cpp, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(MissingDependencyError, match="--gguf-type q4_k_m needs llama-quantize"):
        find_llama_cpp(llama_cpp, "q4_k_m")
    monkeypatch.undo()
    add_quantizer(llama_cpp)
    found = write(merged, find_llama_cpp(llama_cpp, "q4_k_m"), tmp_path, "q4_k_m")
    files = {path.name for path in tmp_path.glob("*.gguf")}
    assert files == {"out-Q4_K_M.gguf", "mmproj-out-BF16.gguf"} == {found.model, found.projector}
    assert (llama_cpp / "quantised").read_text() == "Q4_K_M\n"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("fail", "llama.cpp's converter, on the language model failed: NotImplementedError: Architecture 'Qwen9'"),
        ("silent", "llama.cpp's converter wrote no mmproj-out-BF16.gguf"),
        ("blind", "has no vision encoder: the export would be blind"),
        ("base", "trained layers are not in the GGUF files as merged"),
    ],
)
def test_what_is_not_the_model_is_refused(mode, words, tiny_qwen, merged, llama_cpp, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", f"base={tiny_qwen}" if mode == "base" else mode)
    with pytest.raises(DataError) as caught:
        write(merged, find_llama_cpp(llama_cpp, "bf16"), tmp_path)
    assert words in str(caught.value)


def test_16_bit_floats_of_the_other_kind_are_checked_too(merged, llama_cpp, tmp_path) -> None:
    found = write(merged, find_llama_cpp(llama_cpp, "f16"), tmp_path, "f16")
    assert found.trained_layers_found == len(merged[1])
    assert {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "out-F16.gguf").tensors} == {"F16", "F32"}


def test_llama_cpp_is_never_fetched(lora_run, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("UNSLOTH_LLAMA_CPP_PATH", raising=False)
    with pytest.raises(
        MissingDependencyError, match=r"needs llama\.cpp: git clone it, and name its folder with --llama"
    ):
        export(str(lora_run), ExportConfig(out=tmp_path / "out", format="gguf"))
    with pytest.raises(ConfigError, match=r"no convert_hf_to_gguf\.py in it"):
        find_llama_cpp(tmp_path, "bf16")
    assert not (tmp_path / "out").exists()


def test_llama_cpp_is_found_by_unsloths_variable(llama_cpp, monkeypatch) -> None:
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(llama_cpp))
    assert find_llama_cpp(None, "f16").converter == llama_cpp / "convert_hf_to_gguf.py"
