"""What needs CUDA of evaluation and exports: precision tables, 4-bit exports, the drift after training in 4 bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from made_rows import make_row, turn, write_folder

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TESTS = Path(__file__).parents[1]
VAL_ROWS = 48


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a tiny model, and what one process through Unsloth made of them."""
    from vlmtrain.tiny import make_tiny

    work = tmp_path_factory.mktemp("exports")
    train = [make_row(i) for i in range(96)]
    # wrong labels, which the ranking has to find
    for row in train[:3]:
        row["messages"][-1] = turn("assistant", "purple")
    write_folder(work / "data", {"train": train, "val": [make_row(1000 + i) for i in range(VAL_ROWS)]})
    make_tiny("qwen2.5-vl", work / "model")
    done = subprocess.run(
        [sys.executable, str(TESTS / "gpu" / "export_session.py"), str(work)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (work / "done").exists(), done.stdout[-3000:] + done.stderr[-4000:]
    # the reference backend reads what Unsloth's wrote, in a process that Unsloth has not touched
    command = ["eval", "merged_4bit", "--data", "data", "--backend", "transformers", "--out", "reference-4bit.json"]
    done = subprocess.run(
        [sys.executable, "-m", "vlmtrain", *command], cwd=work, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return work


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_is_scored_in_three_precisions(work: Path) -> None:
    result = read(work / "run" / "eval-val.json")
    assert result["precision"]["reference"] == result["load_in"] == "16bit"
    assert list(result["precision"]["others"]) == ["8bit", "4bit"]
    for other in result["precision"]["others"].values():
        assert other["paired"]["cer"]["rows"] == VAL_ROWS
        assert abs(other["paired"]["exact_match"]["difference"]) <= 0.25
    # it learned what it sees, in the precision it was trained in
    assert result["precision"]["others"]["4bit"]["scores"]["exact_match"]["value"] >= 0.9
    assert result["swapped"]["paired"]["exact_match"]["low"] > 0
    assert result["compare"]["paired"]["exact_match"]["low"] > 0


def test_wrong_labels_are_ranked_first(work: Path) -> None:
    lines = map(json.loads, (work / "run" / "rank-train.jsonl").read_text(encoding="utf-8").splitlines())
    assert {line["id"] for line in list(lines)[:3]} == {"row-0", "row-1", "row-2"}


@pytest.mark.parametrize("form", ["adapter", "merged_16bit", "merged_4bit"])
def test_an_export_is_the_trained_model_and_tells_its_drift(form: str, work: Path) -> None:
    report = read(work / form / "export.json")
    assert (report["format"], report["backend"], report["trained_in"]) == (form, "unsloth", "4bit")
    assert report["parity"]["holds"]
    assert report["adapted_layers"]["vision"] > 0
    drift = report["drift"]
    assert (drift["trained_in"], drift["rows"]) == ("4bit", VAL_ROWS)
    assert drift["exported_in"] == ("4bit" if form == "merged_4bit" else "16bit")
    assert abs(drift["metrics"]["exact_match"]["difference"]) <= 0.25
    if form != "adapter":
        assert report["merged_weights"]["changed_layers"] == report["merged_weights"]["layers"] > 0
    # the export is scored as the drift says
    scored = read(work / form / "eval-val.json")
    assert scored["load_in"] == drift["exported_in"]
    assert scored["scores"]["exact_match"]["value"] == pytest.approx(drift["metrics"]["exact_match"]["value"], abs=0.05)


def test_a_4_bit_export_is_rounded_and_loads_in_both_backends(work: Path) -> None:
    report = read(work / "merged_4bit" / "export.json")
    assert report["parity"]["relative_error"] > report["merged_parity"]["relative_error"]
    assert read(work / "merged_4bit" / "config.json")["quantization_config"]["load_in_4bit"]
    size = {
        form: sum(path.stat().st_size for path in (work / form).glob("*.safetensors"))
        for form in ("merged_16bit", "merged_4bit")
    }
    assert size["merged_4bit"] < size["merged_16bit"]
    ours, theirs = read(work / "reference-4bit.json"), read(work / "merged_4bit" / "eval-val.json")
    difference = ours["scores"]["exact_match"]["value"] - theirs["scores"]["exact_match"]["value"]
    assert abs(difference) <= 0.1
