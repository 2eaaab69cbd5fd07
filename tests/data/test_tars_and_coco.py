"""WebDataset tars and COCO caption files: the rows they become, and what is said of broken ones."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from vlmdata.build_config import BuildConfig
from vlmdata.check import check_inputs
from vlmdata.config import InputConfig
from vlmdata.errors import DataError
from vlmdata.manifest import Counts
from vlmdata.sample import Problem
from vlmdata.sources import Source, open_sources
from vlmdata.sources.coco import read_coco


def encode_image(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 24)).point(lambda value: value + level).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def open_one(path: Path, **options) -> Source:
    (source,) = open_sources([str(path)], InputConfig(**options))
    return source


def rows_of(path: Path, **options) -> list[dict | Problem]:
    source = open_one(path, **options)
    found = list(source.read())
    assert [index for index, _ in found] == list(range(len(found)))
    return [row for _, row in found]


def check(*inputs: Path, notes: list[str] | None = None, **options) -> Counts:
    values = {"inputs": tuple(map(str, inputs)), "out": Path("unused"), "workers": 0, "min_side": 8, "dedup": "none"}
    return check_inputs(
        BuildConfig.from_values({**values, "max_reject_rate": 1.0, **options}),
        rejected=None,
        on_partition=lambda _: None,
        on_note=(notes if notes is not None else []).append,
    )


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
def test_rows_of_a_tar(tmp_path: Path, name: str) -> None:
    members = [
        ("./a/1.png", b"one"),
        ("./a/1.txt", b"Eine Katze\n"),
        ("./a/1.json", b'{"id": "first", "score": 2}'),
        ("._1.txt", b"debris"),
        ("./a/2.0.jpg", b"two"),
        ("./a/2.1.jpg", b"three"),
        ("./b/2.JPG", b"four"),
        ("./b/2.cls", b"7"),
    ]
    path = write_tar(tmp_path / name, members, "w" if name == "set.tar" else "w:gz")
    assert rows_of(path) == [
        {
            "id": "first",
            "__key__": "a/1",
            "text": "Eine Katze",
            "score": 2,
            "image": {"bytes": b"one", "path": "1.png"},
        },
        {
            "id": "a/2",
            "__key__": "a/2",
            "images": [{"bytes": b"two", "path": "2.0.jpg"}, {"bytes": b"three", "path": "2.1.jpg"}],
        },
        {"id": "b/2", "__key__": "b/2", "label": "7", "image": {"bytes": b"four", "path": "2.JPG"}},
    ]
    assert open_one(path).kind == "WebDataset tar"


def test_members_that_cost_their_row(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, content in (("2.json", b"{"), ("3.txt", b"\xff"), ("4.png", bytes(3000)), ("5.png", b"fine")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    rows = rows_of(path, max_line_bytes=2000)
    assert [row.reason for row in rows[:4]] == ["tar_not_a_file", "json_broken", "bad_encoding", "line_too_long"]
    assert rows[4]["image"]["bytes"] == b"fine"


def test_broken_tars(tmp_path: Path) -> None:
    members = [(f"{i}.png", encode_image(i) * 40) for i in range(4)]
    path = write_tar(tmp_path / "set.tar", members)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    rows = rows_of(path)
    assert isinstance(rows[-1], Problem)
    assert rows[-1].reason == "tar_broken"
    assert [row["id"] for row in rows[:-1]] == [str(i) for i in range(len(rows) - 1)]
    packed = tmp_path / "set.tar.gz"
    packed.write_bytes(gzip.compress(whole)[:-30])
    assert rows_of(packed)[-1].reason == "tar_broken"
    (tmp_path / "no.tar").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match="not a readable tar file"):
        rows_of(tmp_path / "no.tar")


def test_tars_in_a_build(tmp_path: Path) -> None:
    chat = json.dumps({"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Grey."}]})
    write_tar(tmp_path / "a.tar", [("1.png", encode_image(0)), ("1.txt", b"A ramp."), ("2.txt", b"No picture.")])
    write_tar(tmp_path / "b.tar", [("1.png", encode_image(0)), ("1.json", chat.encode())])
    notes: list[str] = []
    counts = check(tmp_path, notes=notes)
    assert (counts.read, counts.kept, dict(counts.rejected)) == (3, 2, {"image_missing": 1})
    assert ["captions" in notes[0], "llava" in notes[1]] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


COCO = {
    "info": {"year": 2014},
    "images": [{"id": 7, "file_name": "7.png", "width": 24}, {"id": 8, "file_name": "8.png"}, {"file_name": "x"}],
    "annotations": [
        {"id": 1, "image_id": 8, "caption": "Dark."},
        {"id": 2, "image_id": 7, "caption": "Light."},
        {"id": 3, "image_id": 7, "caption": "Bright."},
        {"id": 4, "image_id": 99, "caption": "Lost."},
        {"id": 5, "image_id": 7, "bbox": [1, 2, 3, 4]},
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_coco_captions(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(COCO, indent=indent))
    rows = rows_of(path)
    assert rows[0] == {
        "id": 7,
        "file_name": "7.png",
        "width": 24,
        "image": "7.png",
        "image_id": 7,
        "captions": ["Light.", "Bright."],
    }
    assert [row.reason for row in rows[2:]] == ["bad_annotation", "image_missing", "bad_annotation"]
    for name in ("7", "8"):
        (tmp_path / f"{name}.png").write_bytes(encode_image(int(name)))
    notes: list[str] = []
    counts = check(path, notes=notes)
    assert (counts.read, counts.kept) == (5, 2)
    assert notes == [
        "captions.json: COCO; captions (image 'image', instruction 'Describe the image.', response 'captions', id 'id')"
    ]
    assert check(path, answers="all").kept == 3


def test_a_long_coco_file_is_told_by_its_first_key(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = [{"id": i, "file_name": f"{i}.png", "padding": "x" * 1000} for i in range(1500)]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 3, "caption": "Three."}]}))
    assert open_one(path).kind == "COCO"
    assert rows_of(path)[3]["captions"] == ["Three."]


def test_json_that_only_looks_like_coco(tmp_path: Path) -> None:
    boxes = tmp_path / "instances.json"
    boxes.write_text(json.dumps({**COCO, "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}]}))
    with pytest.raises(DataError, match="without captions"):
        rows_of(boxes)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"images": ["a.png"], "annotations": "none"}\n' * 2)
    assert open_one(rows).kind == "JSON lines"
    broken = tmp_path / "broken.json"
    broken.write_text('{"info": {},\n"images": [')
    with pytest.raises(DataError, match="not readable"):
        rows_of(broken)


def join_in_memory(whole: dict) -> list[dict]:
    captions: dict = {}
    for annotation in whole["annotations"]:
        captions.setdefault(repr(annotation["image_id"]), []).append(annotation["caption"])
    return [
        {**image, "image": image["file_name"], "image_id": image["id"], "captions": captions.pop(repr(image["id"]), [])}
        for image in whole["images"]
    ]


@pytest.mark.parametrize("annotations_first", [True, False])
@pytest.mark.parametrize("read_bytes", [64, 1 << 20])
def test_coco_lists_are_joined_as_they_would_be_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, annotations_first: bool, read_bytes: int
) -> None:
    monkeypatch.setattr("vlmdata.sources.json_rows.READ_BYTES", read_bytes)
    monkeypatch.setattr("vlmdata.sources.json_lists.READ_BYTES", read_bytes)
    images = [{"id": key, "file_name": f"{i}.png", "x": {"y": [1, "]}"]}} for i, key in enumerate([3, "3", 5, 3, 9])]
    captions = [
        {"image_id": key, "caption": f'Number {i}, "quoted" \\ [x] {{y}}'} for i, key in enumerate([5, "3", 3, 5])
    ]
    lists = {"images": images, "annotations": captions}
    members = {"info": {"a": [1, {"b": "}"}]}, "version": 1.5, "none": None, "words": 'a "word", {"images": [1]}'}
    whole = {**members, **(dict(reversed(lists.items())) if annotations_first else lists), "categories": [{"id": 1}]}
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(whole, indent=2 if annotations_first else None))
    assert list(read_coco(path, 1 << 20)) == list(enumerate(join_in_memory(whole)))


def test_a_broken_element_of_a_coco_file_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = ['{"id": 1, "file_name": "1.png"}', '{"id": 2, "file_name": }', json.dumps({"id": 3, "x": "y" * 4000})]
    captions = [f'{{"image_id": {i}, "caption": {text}}}' for i, text in ((1, '"One."'), (1, "tru"), (2, '"Two."'))]
    path.write_text(f'{{"images": [{",".join(images)}], "annotations": [{",".join(captions)}]}}')
    found = [row for _, row in read_coco(path, 2000)]
    assert found[0]["captions"] == ["One."]
    assert [row.reason for row in found[1:]] == ["json_broken", "line_too_long", "image_missing", "json_broken"]
    for text in (path.read_text()[:-1], path.read_text()[:-60], path.read_text() + "{}"):
        path.write_text(text)
        with pytest.raises(DataError, match="not readable"):
            list(read_coco(path, 2000))


def test_memory_does_not_grow_with_a_coco_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    with path.open("w") as file:
        file.write('{"images": [')
        file.write(",".join(json.dumps({"id": i, "file_name": f"{i}.png", "x": "y" * 500}) for i in range(15_000)))
        file.write('], "annotations": [')
        file.write(",".join(json.dumps({"image_id": i, "caption": "z" * 500}) for i in range(15_000)))
        file.write("]}")
    tracemalloc.start()
    assert sum(len(row["captions"]) for _, row in read_coco(path, 1 << 20)) == 15_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
