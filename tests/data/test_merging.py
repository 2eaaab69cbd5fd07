"""`--merge-turns`: questions on the same images become turns of one conversation, and every row is accounted for."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.build import BuildReport
from vlmdata.check import check_inputs
from vlmdata.errors import ConfigError


def encode_image(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def build(folder: Path, rows: list[dict], out: str = "out", **options: object) -> BuildReport:
    folder.mkdir(exist_ok=True)
    for seed in range(8):
        (folder / f"{seed}.png").write_bytes(encode_image(seed))
    (folder / "copy.png").write_bytes(encode_image(0))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"inputs": [str(folder / "rows.jsonl")], "out": folder / out, "workers": 0, "min_side": 8}
    return build_folder(BuildConfig.from_values({**values, "merge_turns": True, "max_reject_rate": 0.0, **options}))


def read(folder: Path, out: str = "out", split: str = "train") -> list[dict]:
    return [dict(row) for row in open_folder(folder / out).split(split)]


def told(row: dict) -> list[str]:
    """What a conversation says, images as a mark."""
    parts = [part for message in row["messages"] for part in message["content"]]
    return ["<image>" if part["type"] == "image" else part["text"] for part in parts]


def chat(images: list[str], *turns: str, system: str | None = None) -> dict:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    before = [{"role": "system", "content": system}] if system else []
    return {"messages": before + messages, "images": images}


def test_questions_on_one_image_become_turns(tmp_path: Path) -> None:
    rows = [
        chat(["0.png"], "<image>What?", "A."),
        chat(["1.png"], "<image>What?", "B."),
        chat(["copy.png"], "Which colour?<image>", "Red.", "Sure?", "Yes."),
        chat(["0.png"], "<image>How many?", "Two."),
    ]
    report = build(tmp_path, rows)
    stored = read(tmp_path)
    assert [told(row) for row in stored] == [
        ["<image>", "What?", "A.", "Which colour?", "Red.", "Sure?", "Yes.", "How many?", "Two."],
        ["<image>", "What?", "B."],
    ]
    assert [len(row["images"]) for row in stored] == [1, 1]
    assert stored[0]["references"] == ["Two."]
    assert [message["role"] for message in stored[0]["messages"]] == ["user", "assistant"] * 4
    counts = report.manifest.counts
    assert (counts.read, counts.kept, dict(counts.rejected)) == (4, 2, {"merged": 2})
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["row"], line["stage"], line["reason"]) for line in lines] == [
        (2, "merge", "merged"),
        (3, "merge", "merged"),
    ]
    assert lines[0]["detail"] == "into the conversation of rows.jsonl:0"
    assert "merged" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_not_merged(tmp_path: Path) -> None:
    rows = [
        chat(["0.png"], "<image>What?", "A."),
        chat(["0.png"], "<image>What?", "Something else."),  # the same question, answered differently
        chat(["0.png"], "<image>Why?", "So.", system="Be brief."),
        chat(["0.png", "1.png"], "<image><image>Same?", "No."),
        chat(["1.png", "0.png"], "<image><image>Alike?", "No."),
        chat(["0.png"], "Is <image> old?", "No."),  # a text with a gap where the image stood
        chat(["1.png", "0.png"], "<image>First?", "Yes.", "<image>Second?", "No."),
        chat([], "Who are you?", "A model."),
        chat([], "Where are you?", "Here."),
    ]
    report = build(tmp_path, rows)
    assert report.manifest.counts.kept == len(rows)


def test_a_question_with_two_answers_stays_in_two_conversations(tmp_path: Path) -> None:
    questions = ["What?", "What?", "How?", "How?", "Why?"]
    rows = [chat(["0.png"], "<image>" + text, f"{i}.") for i, text in enumerate(questions)]
    build(tmp_path, rows)
    assert [told(row)[1:] for row in read(tmp_path)] == [
        ["What?", "0.", "How?", "2.", "Why?", "4."],
        ["What?", "1.", "How?", "3."],
    ]


def test_limits_begin_another_conversation(tmp_path: Path) -> None:
    rows = [chat(["0.png"], f"<image>Question {i}?", "x" * 100) for i in range(7)]
    build(tmp_path, rows, max_merged=3)
    assert [len(row["messages"]) // 2 for row in read(tmp_path)] == [3, 3, 1]
    build(tmp_path, rows, out="short", max_chars=300)
    assert [len(row["messages"]) // 2 for row in read(tmp_path, "short")] == [2, 2, 2, 1]
    with pytest.raises(ConfigError, match="max_merged must be at least 2"):
        build(tmp_path, rows, out="bad", max_merged=1)


def test_boxes_of_all_rows_are_kept_each_once(tmp_path: Path) -> None:
    rows = [
        {"image": "0.png", "question": f"Where {i}?", "answer": "There.", "objects": {"bbox": boxes, "label": labels}}
        for i, (boxes, labels) in enumerate([([[0, 0, 4, 4]], ["a"]), ([[0, 0, 4, 4], [1, 1, 4, 4]], ["a", "b"])])
    ]
    build(tmp_path, [*rows, {"image": "0.png", "question": "What?", "answer": "That."}], box_format="xyxy")
    (row,) = read(tmp_path)
    assert row["objects"]["label"] == ["a", "b"]
    assert len(row["messages"]) == 6


def many_rows(count: int = 400) -> list[dict]:
    rng = np.random.default_rng(3)
    rows = []
    for i in range(count):
        image, question = int(rng.integers(8)), int(rng.integers(60))
        rows.append({"image": f"{image}.png", "question": f"Question {question}?", "answer": f"{i % 3}"})
    return rows


def test_every_row_is_in_one_place_and_workers_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many_rows()
    monkeypatch.setattr("vlmdata.stage.partitions.PARTITION_ROWS", 64)
    options = {"split": "val=0.3", "dedup": "near", "max_merged": 5}
    first = build(tmp_path, rows, **options)
    second = build(tmp_path, rows, out="parallel", **{**options, "workers": 4})
    assert first.manifest.counts == second.manifest.counts
    for name in ("train", "val"):
        shards = [sorted((tmp_path / out / name).glob("*.arrow")) for out in ("out", "parallel")]
        assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    assert (tmp_path / "out/rejected.jsonl").read_bytes() == (tmp_path / "parallel/rejected.jsonl").read_bytes()
    counts = first.manifest.counts
    assert counts.rejected["merged"] > 200
    stored = [row for name in ("train", "val") for row in read(tmp_path, split=name)]
    asked: Counter[tuple[str, str, str]] = Counter()
    for row in stored:
        texts = told(row)[1:]
        assert len(texts) <= 10
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            asked[row["images"][0]["path"], question, answer] += 1
    # brute force: of each different row one turn, and no turn that was no row
    assert asked == Counter({(row["image"], row["question"], row["answer"]): 1 for row in rows})
    sides = defaultdict(set)
    for name in ("train", "val"):
        for row in read(tmp_path, split=name):
            sides[row["images"][0]["path"]].add(name)
    assert all(len(names) == 1 for names in sides.values())


def test_a_check_counts_what_a_build_would_merge(tmp_path: Path) -> None:
    report = build(tmp_path, many_rows(60))
    values = {"inputs": [str(tmp_path / "rows.jsonl")], "out": tmp_path / "none", "workers": 0, "min_side": 8}
    config = BuildConfig.from_values({**values, "merge_turns": True})
    counts = check_inputs(config, rejected=None, on_partition=lambda _: None, on_note=lambda _: None)
    assert counts == report.manifest.counts


def test_conflicts_are_still_found_between_merged_rows(tmp_path: Path) -> None:
    questions = ["What?", "How?", "How?"]
    build(tmp_path, [chat(["0.png"], "<image>" + text, f"{i}.") for i, text in enumerate(questions)])
    assert "2 different answers in 2 rows" in (tmp_path / "out" / "report.html").read_text()
