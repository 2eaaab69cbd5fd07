"""A run through Unsloth that a signal stopped and `--resume` went on with, against two that nothing stopped."""

from __future__ import annotations

import json
import os
import signal
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

STEPS = 12
STOPPED_AFTER = 5
LEAST_NOISE = 0.001


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and a tiny model."""
    from vlmtrain.tiny import make_tiny

    work = tmp_path_factory.mktemp("resume")
    write_folder(work / "data", {"train": [make_row(i) for i in range(64)]})
    make_tiny("qwen2.5-vl", work / "model")
    return work


def start(work: Path, out: str, *more: str) -> subprocess.Popen[str]:
    options = ["--data", "data", "--model", "model", "--out", out, "--backend", "unsloth", "--load-in", "16bit"]
    options += ["--max-steps", str(STEPS), "--batch-size", "4", "--grad-accum", "1", "--lr", "1e-2", "--dropout", "0.1"]
    return subprocess.Popen(
        [sys.executable, "-m", "vlmtrain", "fit", *options, *more],
        cwd=work,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(run: Path) -> list[float]:
    logs = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [log["loss"] for log in logs if "loss" in log]


def test_a_stopped_run_goes_on_as_if_nothing_had_been(work: Path) -> None:
    whole = [start(work, name) for name in ("first", "second")]
    stopped = start(work, "stopped")
    lines = []
    for line in stopped.stdout:
        lines.append(line)
        if line.startswith(f"step {STOPPED_AFTER}/"):
            stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM, "".join(lines[-20:])
    assert STOPPED_AFTER <= len(losses(work / "stopped")) < STEPS
    resumed = start(work, "stopped", "--resume")
    for process in [*whole, resumed]:
        output = process.communicate()[0]
        assert process.returncode == 0, output[-3000:]
    first, second, resumed_losses = (losses(work / name) for name in ("first", "second", "stopped"))
    assert len(first) == len(resumed_losses) == STEPS

    def apart(other: list[float]) -> float:
        return max(abs(a - b) / a for a, b in zip(first, other, strict=True))

    print(f"two equal runs: {apart(second):.4%} apart; stopped and resumed: {apart(resumed_losses):.4%}")
    assert apart(resumed_losses) <= max(2 * apart(second), LEAST_NOISE)
