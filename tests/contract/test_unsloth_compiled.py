"""Unsloth's vision blocks are traced into one graph each, and train as they do uncompiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from made_rows import make_row, write_folder

TESTS = Path(__file__).parents[1]


def test_compiled_vision_blocks_train_as_they_are(tmp_path: Path) -> None:
    from vlmtrain.tiny import make_tiny

    write_folder(tmp_path / "data", {"train": [make_row(i, images=1 + (i % 3 == 0)) for i in range(8)]})
    make_tiny("qwen2.5-vl", tmp_path / "model", hidden_size=64, layers=2)
    options = ["--max-steps", "2", "--batch-size", "4", "--grad-accum", "1", "--lr", "1e-2", "--warmup", "0"]
    options += ["--gradient-checkpointing", "off", "--attention", "varlen", "--batching", "packed", "--no-report"]
    command = [sys.executable, str(TESTS / "contract" / "unsloth_compiled.py"), "--data", "data", "--model", "model"]
    command += ["--backend", "unsloth", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "not compiled" not in done.stdout
    assert done.stdout.count("blocks are compiled") == 1
    assert done.stdout.count("compiled layers: gradients of the first pass have 1.00 times") == 1
    assert done.stdout.count("compiled layers: products are added in place") == 1
    losses = {}
    for name in ("off", "on"):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    traced = json.loads((tmp_path / "traced.json").read_text(encoding="utf-8"))
    assert traced["off"] == 0
    assert traced["on"] >= 1
    assert len(losses["on"]) == 2
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)
    # the second loss has been through a backward pass and an update
    assert losses["on"][0] != losses["on"][1]
