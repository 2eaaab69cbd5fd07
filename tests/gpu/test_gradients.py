"""Compiled layers on a GPU have the gradients of uncompiled ones, in the ways that `fit` has them compiled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from made_rows import make_row, write_folder

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FAMILIES = ["qwen2.5-vl", "gemma3", "llama3.2-vision", "pixtral", "llava-1.5"]


def run(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_before_the_first_step_finds_them_right(family: str, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {"train": [make_row(i) for i in range(16)]})
    run("-m", "vlmtrain", "tiny", family, tmp_path / "model")
    options = ["--max-steps", 2, "--batch-size", 4, "--load-in", "16bit", "--backend", "unsloth", "--no-report"]
    out = run(
        "-m", "vlmtrain", "fit", "--data", data, "--model", tmp_path / "model", "--out", tmp_path / "run", *options
    )
    [ratio] = re.findall(r"gradients of the first pass have ([\d.]+) times", out)
    assert float(ratio) == pytest.approx(1.0, rel=0.1)
