"""Boxes inside texts: what is one, what is none, and where it lies on the stored image."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.formats.boxes import Placement, move_boxes
from vlmdata.formats.text_boxes import check_text_boxes, has_text_boxes, move_text_boxes
from vlmdata.sample import Message, Objects, Part, Problem, Sample

HALF = Placement((200, 100), (100, 50), (0, 0, 100, 50))
PADDED = Placement((200, 100), (100, 100), (0, 25, 100, 50))
CROPPED = Placement((200, 100), (50, 50), (-25, 0, 100, 50))


def sample_of(*turns: tuple[str, int, str], references: list[str] | None = None) -> Sample:
    """Turns of (role, images shown before the text, text)."""
    messages = [Message(role, [*[Part("image")] * count, Part("text", text)]) for role, count, text in turns]  # type: ignore[arg-type]
    return Sample("a", "rows", 0, messages, references=references or [])


def moved(text: str, place: Placement = HALF, box_format: str = "xyxy") -> str | Problem:
    sample = sample_of(("user", 1, "Where?"), ("assistant", 0, text), references=[text])
    problem = move_text_boxes(sample, [place], box_format)
    if problem is not None:
        return problem
    assert sample.references == [sample.messages[1].content[0].text]
    return sample.references[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "cat 12"}]', '[{"bbox_2d": [5, 10, 15, 20], "label": "cat 12"}]'),
        ('{"bbox":[10,20,30,40]}', '{"bbox":[5,10,15,20]}'),
        ("{'bbox_2d': [10.0, 20.50, 30, 4e1]}", "{'bbox_2d': [5.0, 10.25, 15, 20.0]}"),
        ('"bbox_2d": [[10, 20, 30, 40], [50, 60, 70, 80]]', '"bbox_2d": [[5, 10, 15, 20], [25, 30, 35, 40]]'),
        ("<|box_start|>(10,20),(30,40)<|box_end|>", "<|box_start|>(5,10),(15,20)<|box_end|>"),
        ("<ref>cat</ref><box>(10, 20),(30, 40)</box>", "<ref>cat</ref><box>(5, 10),(15, 20)</box>"),
        ("<box>[[10, 20, 30, 40]]</box> 30", "<box>[[5, 10, 15, 20]]</box> 30"),
    ],
)
def test_ways_to_write_boxes(text: str, expected: str) -> None:
    assert moved(text) == expected
    assert has_text_boxes({"rows": [{"value": text}]})


@pytest.mark.parametrize(
    "text",
    [
        "The box [10, 20, 30, 40] holds 12 of 30.",
        "(10,20),(30,40)",
        '{"label": [10, 20, 30, 40], "bbox_3d": [10, 20, 30, 40], "point_2d": [10, 20]}',
        'Answer as {"bbox_2d": [x1, y1, x2, y2]}.',
        '"bbox_2d": [] and "bbox_2d": null, "bbox_2d": "[10, 20, 30, 40]"',
        '"bbox_2d": [10, 20, 30, 40',
        "<box>[[10, 20, 30, 40]]<|box_end|>",
        "bbox_2d: [10, 20, 30, 40]",
        "<box>see below</box>",
    ],
)
def test_other_numbers_are_never_touched(text: str) -> None:
    assert moved(text) == text
    assert moved(text, CROPPED, "xyxy-1000") == text


@given(st.text(alphabet="0123456789 .,-[](){}<>|:\"'abeox_2dstrnd/\n"))
def test_texts_without_marks_stay(text: str) -> None:
    if not has_text_boxes(text):
        assert moved(text) == text
    assert isinstance(moved(text), str | Problem)


@pytest.mark.parametrize("text", ['"bbox_2d": [10, 20, 30]', "<box>(10,20)</box>", '"bbox": [1, 2, 3, 1e999]'])
def test_boxes_of_other_than_four_numbers(text: str) -> None:
    for problem in (moved(text), check_text_boxes(text)):
        assert isinstance(problem, Problem)
        assert problem.reason == "bad_boxes"


@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "cxcywh", "xyxy-norm", "xywh-norm", "cxcywh-norm", "xyxy-1000"])
@pytest.mark.parametrize("place", [HALF, PADDED])
def test_texts_follow_as_objects_do(box_format: str, place: Placement) -> None:
    full = {"": (200, 100), "norm": (1, 1), "1000": (1000, 1000)}[box_format.partition("-")[2]]
    box = [0.25 * full[0], 0.5 * full[1], 0.5 * full[0], 0.75 * full[1]]
    (expected,) = move_boxes(Objects([box], [""], [0], box_format), [place]).bbox
    text = moved('{"bbox_2d": [' + ", ".join(f"{number:.5f}" for number in box) + "]}", place, box_format)
    assert [float(number) for number in re.findall(r"[\d.]{4,}", str(text))] == pytest.approx(expected, abs=1e-5)


def test_relative_boxes_stay_where_the_whole_picture_is_resized() -> None:
    text = '{"bbox_2d": [0.1234567, 0.5, 0.50, 1]}'
    assert moved(text, HALF, "xyxy-norm") == text
    assert moved(text, PADDED, "xyxy-norm") != text
    text = "<|box_start|>(100,200),(300,400)<|box_end|>"
    assert moved(text, HALF, "xyxy-1000") == text
    assert moved(text, PADDED, "xyxy-1000") == "<|box_start|>(100,350),(300,450)<|box_end|>"


def test_crops_cut_boxes() -> None:
    assert moved('"bbox": [0, 0, 100, 100]', CROPPED) == '"bbox": [0, 0, 25, 50]'
    assert moved('"bbox": [0, 0, 100, 100]', CROPPED, "xywh") == '"bbox": [0, 0, 25, 50]'
    gone = moved('"bbox": [0, 0, 40, 100]', CROPPED)
    assert isinstance(gone, Problem)
    assert "cuts off" in gone.detail


def test_the_image_of_a_box_must_be_clear() -> None:
    box = '"bbox": [10, 20, 30, 40]'
    other = Placement((50, 50), (100, 100), (0, 0, 100, 100))
    alike = sample_of(("user", 2, "Where?"), ("assistant", 0, box))
    assert move_text_boxes(alike, [HALF, HALF], "xyxy") is None
    assert alike.messages[1].content[0].text == '"bbox": [5, 10, 15, 20]'
    unclear = sample_of(("user", 2, "Where?"), ("assistant", 0, box))
    problem = move_text_boxes(unclear, [HALF, other], "xyxy")
    assert isinstance(problem, Problem)
    assert "on which of 2 differently sized images" in problem.detail
    first = sample_of(("user", 1, "Where?"), ("assistant", 0, box), ("user", 1, "And?"), ("assistant", 0, "Nowhere."))
    assert move_text_boxes(first, [HALF, other], "xyxy") is None
    assert first.messages[1].content[0].text == '"bbox": [5, 10, 15, 20]'
    asked = sample_of(("user", 2, 'As "bbox": [x1, y1, x2, y2]'), ("assistant", 0, "Nothing."))
    assert move_text_boxes(asked, [HALF, other], "xyxy") is None
    wordless = sample_of(("user", 0, "Where?"), ("assistant", 0, box))
    assert move_text_boxes(wordless, [], "xyxy") is None
    assert wordless.messages[1].content[0].text == box


def test_a_long_text_takes_no_longer_than_it_is_long() -> None:
    started = time.perf_counter()
    for text in ('"bbox_2d": [' + "1," * 500_000, "<box>" * 100_000, "<box>" + "(" * 500_000, '"bbox": [' * 60_000):
        moved(text)
    assert time.perf_counter() - started < 5


def build(folder: Path, answers: list[str], **options: object) -> tuple[list[str], list[dict], list[str]]:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    rows = [{"image": "a.png", "question": f"Where {i}?", "answer": answer} for i, answer in enumerate(answers)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"inputs": [str(folder / "rows.jsonl")], "out": folder / "out", "workers": 0, "max_reject_rate": 1.0}
    report = build_folder(BuildConfig.from_values({**values, "min_side": 8, "max_side": 100, **options}))
    rejected = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    stored = [row["messages"][-1]["content"][0]["text"] for row in open_folder(folder / "out").split("train")]
    return stored, rejected, report.notes


ANSWERS = ['{"bbox_2d": [10, 20, 30, 40]}', "<|box_start|>(10,20),(30,40)<|box_end|>", "<|im_end|>", '"bbox": [1, 2]']


def test_boxes_of_a_built_folder_follow_their_image(tmp_path: Path) -> None:
    stored, rejected, notes = build(tmp_path, ANSWERS, box_format="xyxy")
    assert stored == ['{"bbox_2d": [5, 10, 15, 20]}', "<|box_start|>(5,10),(15,20)<|box_end|>"]
    assert [line["reason"] for line in rejected] == ["template_token", "bad_boxes"]
    assert any("boxes in texts as xyxy" in note for note in notes)


def test_without_a_box_format_texts_stay_and_one_line_says_so(tmp_path: Path) -> None:
    stored, rejected, notes = build(tmp_path, ANSWERS)
    assert stored == [ANSWERS[0], ANSWERS[3]]
    assert "--box-format" in rejected[0]["detail"]
    assert sum("boxes in texts do not follow their images: no --box-format" in note for note in notes) == 1


def test_escaping_spares_whole_box_tags(tmp_path: Path) -> None:
    answers = ["<|im_end|> <|box_start|>(10,20),(30,40)<|box_end|> <|box_end|>"]
    stored, _, _ = build(tmp_path, answers, box_format="xyxy", template_tokens="escape")
    assert stored == ["< |im_end|> <|box_start|>(5,10),(15,20)<|box_end|> < |box_end|>"]
