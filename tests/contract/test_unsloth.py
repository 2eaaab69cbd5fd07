"""Unsloth's own code, on a CPU in a process of its own, against the reference: batches, losses, layers, exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from made_rows import make_conversation, make_row, turn, write_folder
from vlmdata.families import FAMILIES

TESTS = Path(__file__).parents[1]


def make_conversations() -> list[list[dict]]:
    """What a mask may stumble over."""
    return [
        [turn("user", "Which?"), turn("assistant", "red")],
        [
            turn("user", None, "Which?"),
            turn("assistant", "red"),
            turn("user", "Sure?"),
            turn("assistant", "Yes.\nYes."),
        ],
        [turn("user", "Say user: assistant model"), turn("assistant", "assistant\nuser\nmodel")],
        [turn("user", "Long. " * 20), turn("assistant", "图片 \\frac{1}{2}  two blanks")],
        [turn("user", "A"), turn("assistant", "B")] * 4,
    ]


SETTINGS = {"max_steps": 4, "lr": 1e-2, "eval_steps": 4, "batch_size": 2, "grad_accum": 4}
# Unsloth's own way of recomputing activations wants a GPU
SETTINGS |= {"gradient_checkpointing": "on"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, tiny models of all families, and what one process through Unsloth made of them."""
    from vlmtrain.tiny import make_tiny

    work = tmp_path_factory.mktemp("backends")
    # rows of one and two answers, so that a mean of means differs from the mean over all tokens
    train = [make_row(i, turns=1 + (i % 3 == 0), images=1 + (i % 5 == 0)) for i in range(16)]
    # longer than any row that is trained on
    long = [turn("user", None, "Which colour is this? " * 20), turn("assistant", "red")]
    val = [*(make_row(100 + i) for i in range(4)), make_conversation(200, long, [(56, 56)])]
    write_folder(work / "data", {"train": train, "val": val})
    (work / "fit.yaml").write_text(json.dumps(SETTINGS | {"data": "data", "model": "model"}), encoding="utf-8")
    (work / "conversations.json").write_text(json.dumps(make_conversations()), encoding="utf-8")
    for family in FAMILIES:
        make_tiny(family, work / "tiny" / family, hidden_size=64, layers=2, vision_hidden_size=64, vision_layers=2)
    (work / "model").symlink_to(work / "tiny" / "qwen2.5-vl")
    done = subprocess.run(
        [sys.executable, str(TESTS / "contract" / "unsloth_session.py"), str(work)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return work


@pytest.fixture(scope="module")
def reference(work: Path) -> Path:
    """The same run through the reference backend."""
    from vlmtrain.config import FitConfig
    from vlmtrain.training import fit

    values = {**SETTINGS, "data": work / "data", "model": str(work / "model"), "out": work / "transformers"}
    return fit(FitConfig.from_values(values | {"backend": "transformers"})).path


def read_logs(run_folder: Path, key: str) -> list[float]:
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line[key] for line in map(json.loads, lines) if key in line]


def test_both_backends_have_the_same_losses(work: Path, reference: Path) -> None:
    ours, theirs = (read_logs(run, "loss") for run in (reference, work / "unsloth"))
    assert len(ours) == SETTINGS["max_steps"]
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert ours[-1] < ours[0]
    # no row of val is cut at the longest row of train
    assert read_logs(work / "unsloth", "eval_loss") == pytest.approx(read_logs(reference, "eval_loss"), rel=1e-3)
    assert read_logs(work / "unsloth", "grad_norm") == pytest.approx(read_logs(reference, "grad_norm"), rel=1e-2)


def test_two_processes_have_the_losses_of_one(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmtrain.launch import launch

    monkeypatch.chdir(work)
    program = str(TESTS / "contract" / "unsloth_on_cpu.py")
    options = ["--backend", "unsloth", "--gpus", "2", "--grad-accum", str(SETTINGS["grad_accum"] // 2), "--out", "two"]
    assert launch(2, [sys.executable, program, "fit", "fit.yaml", *options]) == 0
    for key in ("loss", "eval_loss", "grad_norm"):
        assert read_logs(work / "two", key) == pytest.approx(read_logs(work / "unsloth", key), rel=1e-4), key


def test_both_collators_make_the_same_batches(work: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from vlmdata.shards import open_folder
    from vlmtrain.collator import VisionCollator
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.rows import open_rows
    from vlmtrain.source import find_model

    theirs = load_file(work / "collated.safetensors")
    source = find_model(str(work / "model"))
    chat = load_chat_format(source, load_processor(source))
    chat.processor.tokenizer.padding_side = "right"
    rows = [dict(row) for row in open_rows(open_folder(work / "data").split("train"))]
    compared = set()
    for last_turn_only in (False, True):
        collate = VisionCollator(chat, dtype=torch.float32, last_turn_only=last_turn_only)
        for start in range(0, len(rows), 4):
            for name, tensor in collate(rows[start : start + 4]).items():
                other = theirs.pop(f"{last_turn_only}.{start}.{name}")
                assert other.shape == tensor.shape, name
                assert torch.equal(other.to(tensor.dtype), tensor), name
                compared.add(name)
    assert {"input_ids", "attention_mask", "labels", "pixel_values", "image_grid_thw"} <= compared
    assert theirs == {}


def test_masks_are_unsloths_on_the_same_ids(work: Path) -> None:
    from vlmtrain.masks import mask_labels
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.source import find_model

    found = json.loads((work / "masks.json").read_text(encoding="utf-8"))
    assert set(found) == set(FAMILIES)
    for family, rows in found.items():
        source = find_model(str(work / "tiny" / family))
        chat = load_chat_format(source, load_processor(source))
        for last_turn_only in (False, True):
            labels = rows["labels"][str(last_turn_only)]
            ours = [mask_labels(ids, chat.rules, last_turn_only=last_turn_only) for ids in rows["input_ids"]]
            assert ours == labels, (family, last_turn_only)
            assert all(any(label >= 0 for label in row) for row in labels)


def test_the_flags_choose_the_same_layers(work: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from vlmtrain.config import AdapterConfig
    from vlmtrain.layers import adapter_targets

    found = json.loads((work / "layers.json").read_text(encoding="utf-8"))
    assert set(found) == set(FAMILIES)
    for family, by_flags in found.items():
        model = AutoModelForImageTextToText.from_pretrained(work / "tiny" / family)
        assert len(by_flags) == 9
        for flags, names in by_flags.items():
            assert adapter_targets(model, AdapterConfig(**json.loads(flags))) == names, (family, flags)
            assert names


def test_no_family_keeps_all_attention_scores(work: Path) -> None:
    # left to itself, Unsloth takes Gemma 3's unfused attention where flex attention is off
    found = json.loads((work / "attention.json").read_text(encoding="utf-8"))
    assert set(found) == set(FAMILIES)
    for family, implementations in found.items():
        assert implementations == ["sdpa"], family


def test_both_backends_adapt_the_same_layers(work: Path, reference: Path) -> None:
    from safetensors import safe_open

    names = []
    for folder in (reference, work / "unsloth"):
        with safe_open(folder / "adapter" / "adapter_model.safetensors", framework="numpy") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


def test_the_merged_export_is_the_trained_model_in_16_bit(work: Path) -> None:
    from safetensors import safe_open

    report = json.loads((work / "merged" / "export.json").read_text(encoding="utf-8"))
    assert (report["backend"], report["parity"]["holds"]) == ("unsloth", True)
    assert report["merged_weights"]["changed_layers"] == report["merged_weights"]["layers"] > 0
    with safe_open(work / "merged" / "model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}


def test_rows_have_the_same_losses_in_a_ranking(work: Path, tmp_path: Path) -> None:
    from vlmtrain.ranking import rank_rows
    from vlmtrain.settings import EvalConfig

    config = EvalConfig(rank=True, backend="transformers", out=tmp_path / "ranked.jsonl")
    ours = {row.id: row.loss for row in rank_rows(str(work / "unsloth"), config)}
    lines = map(json.loads, (work / "ranked.jsonl").read_text(encoding="utf-8").splitlines())
    theirs = {line["id"]: line["loss"] for line in lines}
    assert len(ours) > 1
    assert theirs == pytest.approx(ours, rel=1e-3)


def test_no_saved_tokenizer_cuts_texts(work: Path) -> None:
    for folder in ("unsloth/adapter", "merged"):
        tokenizer = json.loads((work / folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert tokenizer["truncation"] is None


def test_nothing_is_written_into_the_working_directory(work: Path) -> None:
    left = {path.name for path in work.iterdir()}
    made = {"data", "model", "tiny", "conversations.json", "fit.yaml", "transformers", "unsloth", "two", "merged"}
    made |= {"collated.safetensors", "masks.json", "layers.json", "ranked.jsonl", "attention.json"}
    assert left <= made
