"""Unsloth's own code, on a CPU in a process of its own, against the reference backend: same loss, same model out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
RUNNER = TESTS / "contract" / "unsloth_on_cpu.py"
STEPS = 4


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location(f"contract_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: object, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=directory, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same LoRA run through both backends, and Unsloth's merged export."""
    from vlmtrain.tiny import make_tiny

    work = tmp_path_factory.mktemp("backends")
    rows = load_module(TESTS / "train" / "conftest.py")
    # rows of one and two answers, so that a mean of means differs from the mean over all tokens
    train = [rows.make_row(i, turns=1 + (i % 3 == 0)) for i in range(16)]
    rows.write_folder(work / "data", {"train": train, "val": [rows.make_row(100 + i) for i in range(4)]})
    make_tiny("qwen2.5-vl", work / "model", hidden_size=64, layers=2)
    options = ["--data", "data", "--model", "model", "--max-steps", STEPS, "--lr", "1e-2", "--eval-steps", STEPS]
    options += ["--gradient-checkpointing", "on"]
    run(RUNNER, "fit", "--backend", "unsloth", "--out", "unsloth", *options, directory=work)
    run("-m", "vlmtrain", "fit", "--backend", "transformers", "--out", "transformers", *options, directory=work)
    run(RUNNER, "export", "unsloth", "--backend", "unsloth", "--out", "merged", directory=work)
    return work


def read_losses(run_folder: Path, key: str) -> list[float]:
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line[key] for line in map(json.loads, lines) if key in line]


def test_both_backends_have_the_same_losses(runs: Path) -> None:
    ours, theirs = (read_losses(runs / name, "loss") for name in ("transformers", "unsloth"))
    assert len(ours) == STEPS
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert ours[-1] < ours[0]
    assert read_losses(runs / "unsloth", "eval_loss") == pytest.approx(
        read_losses(runs / "transformers", "eval_loss"), rel=1e-3
    )


def test_both_backends_adapt_the_same_layers(runs: Path) -> None:
    from safetensors import safe_open

    names = {}
    for name in ("transformers", "unsloth"):
        with safe_open(runs / name / "adapter" / "adapter_model.safetensors", framework="numpy") as file:
            names[name] = set(file.keys())
    assert names["unsloth"] == names["transformers"]


def test_the_merged_export_is_the_trained_model_in_16_bit(runs: Path) -> None:
    from safetensors import safe_open

    report = json.loads((runs / "merged" / "export.json").read_text(encoding="utf-8"))
    assert report["parity"]["holds"]
    assert report["merged_weights"]["changed_layers"] == report["merged_weights"]["layers"] > 0
    with safe_open(runs / "merged" / "model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}


def test_no_saved_tokenizer_cuts_texts(runs: Path) -> None:
    for folder in ("unsloth/adapter", "merged"):
        tokenizer = json.loads((runs / folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert tokenizer["truncation"] is None


def test_nothing_is_written_into_the_working_directory(runs: Path) -> None:
    assert not (runs / "unsloth_compiled_cache").exists()
