"""Files of several pages: refused, their first page, or all of them in the place of the one image."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, PreparedImage, prepare_pages

COLORS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def page(color: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, color)


def tiff(pages: list[Image.Image], **options: object) -> bytes:
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **options)
    return buffer.getvalue()


def read_all(data: bytes, **options: object) -> list[PreparedImage]:
    outcome = prepare_pages(data, ImageConfig(small="keep", pages="all", **options))
    assert isinstance(outcome, list), outcome
    return outcome


def color_of(image: PreparedImage) -> tuple[int, int, int]:
    return Image.open(io.BytesIO(image.data)).convert("RGB").getpixel((5, 5))


def test_every_page_becomes_a_picture_in_order() -> None:
    pages = read_all(tiff([page(COLORS[0]), page(COLORS[1], (30, 90)), page(COLORS[2])]))
    assert [color_of(each) for each in pages] == list(COLORS)
    assert [(each.width, each.height) for each in pages] == [(60, 40), (30, 90), (60, 40)]
    assert [each.frame for each in pages] == [0, 1, 2]
    assert len({each.pixel_hash for each in pages}) == 3


def test_a_page_is_what_it_is_alone() -> None:
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)) for _ in range(3)]
    together = read_all(tiff(pages, compression="tiff_lzw"))
    for alone, found in zip(pages, together, strict=True):
        (expected,) = read_all(tiff([alone], compression="tiff_lzw"))
        assert (found.data, found.pixel_hash) == (expected.data, expected.pixel_hash)
        assert expected.frame is None


def test_pages_stand_upright_each_for_itself() -> None:
    second = page(COLORS[1])
    second.encoderinfo = {"tiffinfo": {0x0112: 6}}  # what the writer takes for this page alone
    data = tiff([page(COLORS[0]), second])
    assert [(each.width, each.height) for each in read_all(data)] == [(60, 40), (40, 60)]


def test_animations_keep_to_their_first_frame() -> None:
    buffer = io.BytesIO()
    page(COLORS[0]).save(buffer, "GIF", save_all=True, append_images=[page(COLORS[1])])
    (only,) = read_all(buffer.getvalue())
    assert only.frame == 0
    assert color_of(only)[0] > 150


def test_bad_pages_and_too_many() -> None:
    data = tiff([page(COLORS[0]), page(COLORS[1], (4000, 2))])
    refused = prepare_pages(data, ImageConfig(pages="all"))
    assert isinstance(refused, ImageProblem)
    assert (refused.reason, refused.detail[:13]) == ("image_too_small", "page 2 of 2: ")
    many = prepare_pages(tiff([page(COLORS[0])] * 5), ImageConfig(pages="all", max_pages=4))
    assert isinstance(many, ImageProblem)
    assert many.reason == "too_many_pages"
    default = prepare_pages(tiff([page(COLORS[0])] * 2), ImageConfig())
    assert isinstance(default, ImageProblem)
    assert default.reason == "multi_page"
    assert isinstance(prepare_pages(b"", ImageConfig(pages="all")), ImageProblem)
    assert isinstance(prepare_pages(b"II*\0junk", ImageConfig(pages="all")), ImageProblem)


def build(folder: Path, rows: list[dict], **options: object) -> tuple[list[dict], list[dict]]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"inputs": [str(folder / "rows.jsonl")], "out": folder / "out", "workers": 0, "pages": "all"}
    build_folder(BuildConfig.from_values({**values, "max_reject_rate": 1.0, **options}))
    rejected = (folder / "out" / "rejected.jsonl").read_text().splitlines()
    return list(open_folder(folder / "out").split("train").iterate()), [json.loads(line) for line in rejected]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scan.tif").write_bytes(tiff([page(color) for color in COLORS]))
    page((9, 9, 9)).save(tmp_path / "one.png")
    return tmp_path


def test_pages_stand_in_the_place_of_their_image(scans: Path) -> None:
    turns = [
        {"role": "user", "content": "Before <image> between <image> after"},
        {"role": "assistant", "content": "Yes."},
    ]
    rows, rejected = build(scans, [{"messages": turns, "images": ["scan.tif", "one.png"]}])
    assert not rejected
    parts = rows[0]["messages"][0]["content"]
    assert [part["text"] and part["text"].strip() for part in parts] == [
        "Before",
        *[None] * 3,
        "between",
        None,
        "after",
    ]
    assert [image["path"] for image in rows[0]["images"]] == ["scan.tif"] * 3 + ["one.png"]
    assert [info["frame"] for info in rows[0]["image_info"]] == [0, 1, 2, None]


def test_boxes_on_pages(scans: Path) -> None:
    row = {"images": ["scan.tif", "one.png"], "question": "Where?", "answer": "There."}
    on_one = {**row, "objects": {"bbox": [[0, 0, 30, 20]], "image_index": [1]}}
    on_scan = {**row, "objects": {"bbox": [[0, 0, 30, 20]], "image_index": [0]}}
    rows, rejected = build(scans, [on_one, on_scan], box_format="xyxy", dedup="none")
    assert [each["objects"]["image_index"] for each in rows] == [[3]]
    assert [(line["reason"], line["detail"]) for line in rejected] == [
        ("bad_boxes", "a box does not say on which of the 3 pages it lies")
    ]
