"""Boxes: how rows write them, and where they lie on the stored image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.formats.boxes import Placement, move_boxes, read_objects
from vlmdata.sample import Objects, Problem


def read(value: object, images: int = 1) -> Objects:
    objects = read_objects(value, "xyxy", images)
    assert isinstance(objects, Objects), objects
    return objects


@pytest.mark.parametrize(
    "value",
    [
        {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8.5]], "category": ["cat", "dog"]},
        {"ref": ["cat", "dog"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8.5]], "image_id": [0, 0]},
        [{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8.5], "label": "dog"}],
        [{"box": [1, 2, 3, 4], "name": "cat", "bbox": None}, {"box": [5, 6, 7, 8.5], "name": "dog", "bbox": None}],
    ],
)
def test_ways_to_write_boxes(value: object) -> None:
    assert read(value) == Objects([[1, 2, 3, 4], [5, 6, 7, 8.5]], ["cat", "dog"], [0, 0], "xyxy")


def test_boxes_without_labels_and_on_several_images() -> None:
    assert read({"bbox": [[1, 2, 3, 4]]}).label == [""]
    assert read({"bbox": [[1, 2, 3, 4]], "label": [7], "image_index": [1]}, images=2).image_index == [1]
    assert [read_objects(value, "xyxy", 1) for value in (None, {}, [], {"bbox": []})] == [None] * 4


@pytest.mark.parametrize(
    "value",
    [
        7,
        ["a"],
        {"bbox": "a"},
        {"bbox": [[1, 2, 3]]},
        {"bbox": [[1, 2, 3, None]]},
        {"bbox": [[1, 2, 3, float("nan")]]},
        {"bbox": [[1, 2, 3, 10**400]]},
        {"bbox": [[1, 2, 3, 4]], "label": ["a", "b"]},
        {"bbox": [[1, 2, 3, 4]], "label": [["a"]]},
        {"bbox": [[1, 2, 3, 4]], "image_index": [1]},
    ],
)
def test_boxes_that_are_none(value: object) -> None:
    problem = read_objects(value, "xyxy", 1)
    assert isinstance(problem, Problem)
    assert problem.reason == "bad_boxes"
    assert isinstance(read_objects({"bbox": [[1, 2, 3, 4]]}, "xyxy", 2), Problem)


# 200 x 100 px, shrunk to half and put between margins of 25 px above and below
PADDED = Placement((200, 100), (100, 100), (0, 25, 100, 50))


@pytest.mark.parametrize(
    ("box_format", "box", "expected"),
    [
        ("xyxy", [20, 10, 60, 50], [10, 30, 30, 50]),
        ("xywh", [20, 10, 40, 40], [10, 30, 20, 20]),
        ("cxcywh", [40, 30, 40, 40], [20, 40, 20, 20]),
        ("xyxy-norm", [0.1, 0.1, 0.3, 0.5], [0.1, 0.3, 0.3, 0.5]),
        ("xywh-norm", [0.1, 0.1, 0.2, 0.4], [0.1, 0.3, 0.2, 0.2]),
        ("cxcywh-norm", [0.2, 0.3, 0.2, 0.4], [0.2, 0.4, 0.2, 0.2]),
        ("xyxy-1000", [100, 100, 300, 500], [100, 300, 300, 500]),
    ],
)
def test_boxes_follow_their_image(box_format: str, box: list[float], expected: list[float]) -> None:
    moved = move_boxes(Objects([box], ["a"], [0], box_format), [PADDED])
    assert moved.bbox[0] == pytest.approx(expected)
    same = Placement((200, 100), (200, 100), (0, 0, 200, 100))
    assert move_boxes(Objects([box], ["a"], [0], box_format), [same]).bbox[0] == pytest.approx(box)


@pytest.mark.parametrize("options", [{"max_side": 100}, {"size": "120x120"}, {"size": "80x80", "fit": "crop"}])
def test_boxes_of_a_built_folder_lie_on_what_they_lay_on(tmp_path: Path, options: dict) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[40:80, 80:120] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "Where?", "answer": "There.", "objects": {"bbox": [[80, 40, 40, 40]]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    values = {"inputs": [str(tmp_path / "rows.jsonl")], "out": tmp_path / "out", "workers": 0, "min_side": 8}
    report = build_folder(BuildConfig.from_values({**values, "box_format": "xywh", **options}))
    assert any("boxes as xywh" in note for note in report.notes)
    (stored,) = open_folder(tmp_path / "out").split("train").iterate(["objects", "images"])
    ((left, top, width, height),) = stored["objects"]["bbox"]
    (tmp_path / "stored").write_bytes(stored["images"][0]["bytes"])
    with Image.open(tmp_path / "stored") as image:
        found = np.asarray(image.convert("RGB")).astype(int)
    red = (found[..., 0] > 127) & (found[..., 1] < 128)
    ys, xs = np.nonzero(red)
    expected = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    assert [left, top, width, height] == pytest.approx(expected, abs=1.01)


def test_boxes_are_left_out_unless_their_format_is_known(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "Where?", "answer": "There.", "objects": {"bbox": [[80, 40, 40, 40]]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    values = {"inputs": [str(tmp_path / "rows.jsonl")], "out": tmp_path / "out", "workers": 0}
    report = build_folder(BuildConfig.from_values(values))
    assert any("boxes left out: no --box-format" in note for note in report.notes)
    assert next(iter(open_folder(tmp_path / "out").split("train").iterate(["objects"])))["objects"] is None


def test_places_for_objects_in_texts_are_no_texts(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    objects = {"ref": ["cat"], "bbox": [[80, 40, 90, 90]]}
    rows = [
        {"image": "a.png", "question": "Find the <ref-object>.", "answer": "<bbox>", "objects": objects},
        {"image": "a.png", "question": "What does <bbox> mean?", "answer": "A box.", "objects": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"inputs": [str(tmp_path / "rows.jsonl")], "out": tmp_path / "out", "workers": 0, "box_format": "xyxy"}
    report = build_folder(BuildConfig.from_values(values))
    assert dict(report.manifest.counts.rejected) == {"unsupported_part": 1}
