"""Rows that show pictures of evaluation sets are dropped, whatever the sets come in; others stay."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from vlmdata import BuildConfig, ConfigError, DataError, build_folder, read_manifest
from vlmdata.build import BuildReport
from vlmdata.check import check_inputs
from vlmdata.config import InputConfig
from vlmdata.decontamination import open_evaluation_sets
from vlmdata.decontamination.pictures import find_pictures
from vlmdata.dedup import EvaluationImages, find_contamination
from vlmdata.dedup.signatures import Signatures
from vlmdata.formats.conversation import as_image_refs
from vlmdata.hashing import hash_images
from vlmdata.pipeline import list_versions
from vlmdata.sources import Source
from vlmdata.stage import PartitionSummary

ROWS = 12
# Rows whose picture the evaluation sets below show: as the same file, as other files, and beside other pictures.
EQUAL, SMALLER, DARKER, SECOND = 2, 5, 7, 9
CONTAMINATED = {EQUAL: "equal pixels", SMALLER: "distance", DARKER: "distance", SECOND: "image 2 of 2"}


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set to train on, and evaluation pictures: four that it shows, and one that it does not."""
    folder = tmp_path_factory.mktemp("sets")
    lines = []
    for i in range(ROWS):
        save(picture(i), folder / "train" / "images" / f"{i}.jpg", quality=92)
        lines.append({"images": [f"images/{i}.jpg"], "question": "What?", "answer": f"this {i}"})
    lines[SECOND]["images"].insert(0, "images/0.jpg")
    (folder / "train" / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pictures = folder / "eval" / "pictures"
    pictures.mkdir(parents=True)
    shutil.copy(folder / "train" / "images" / f"{EQUAL}.jpg", pictures / "a.jpg")
    save(picture(SMALLER).resize((160, 120)), pictures / "b.png")
    save(ImageEnhance.Brightness(picture(DARKER)).enhance(0.85), pictures / "c.jpg", quality=60)
    save(picture(SECOND), pictures / "d.jpg", quality=40)
    save(picture(99), pictures / "e.jpg")
    return folder


NAMES = ["a.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg"]


def config(place: Path, out: Path, *against: Path | str, **options: Any) -> BuildConfig:
    values = {"inputs": [str(place / "train" / "rows.jsonl")], "out": out, "workers": 0, "min_side": 8}
    return BuildConfig.from_values({**values, "against": tuple(map(str, against)), **options})


def build(place: Path, out: Path, *against: Path | str, **options: Any) -> BuildReport:
    return build_folder(config(place, out, *against, **options))


def dropped(out: Path) -> dict[int, str]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {(line["stage"], line["reason"]) for line in lines} <= {("dedup", "contaminated")}
    return {line["row"]: line["detail"] for line in lines}


def write_hashes(place: Path, file: Path, *, thumbnails: bool = False, **options: Any) -> Path:
    values = {"inputs": [str(place / "eval" / "pictures")], "out": file, "workers": 0, "min_side": 8, **options}
    hash_images(
        BuildConfig.from_values(values), thumbnails=thumbnails, on_partition=lambda _: None, on_note=lambda _: None
    )
    return file


def questions(place: Path, folder: Path) -> Path:
    """Test questions without answers."""
    rows = [{"question_id": i, "image": f"pictures/{name}", "text": "What?"} for i, name in enumerate(NAMES)]
    (place / "eval" / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "eval" / "questions.jsonl"


def conversations(place: Path, folder: Path) -> Path:
    parts = [
        [{"type": "image_url", "image_url": {"url": f"pictures/{name}"}}, {"type": "text", "text": "What?"}]
        for name in NAMES
    ]
    (folder / "openai.json").write_text(
        json.dumps([{"messages": [{"role": "user", "content": content}]} for content in parts])
    )
    shutil.copytree(place / "eval" / "pictures", folder / "pictures")
    return folder / "openai.json"


def saved_set(place: Path, folder: Path) -> Path:
    images = [{"bytes": (place / "eval" / "pictures" / name).read_bytes(), "path": name} for name in NAMES]
    pq.write_table(pa.table({"picture_1": images[:2] + images[3:], "n": [1, 2, 3, 4]}), folder / "one.parquet")
    pq.write_table(pa.table({"shown": images[2:3]}), folder / "two.parquet")
    return folder


def built(place: Path, folder: Path, **options: Any) -> Path:
    rows = [{"image": f"pictures/{name}", "question": "?", "answer": "!"} for name in NAMES]
    (place / "eval" / "rows.json").write_text(json.dumps(rows))
    values = {"inputs": [str(place / "eval" / "rows.json")], "out": folder / "built", "workers": 0, "min_side": 8}
    build_folder(BuildConfig.from_values({**values, "split": "val=0.4", **options}))
    return folder / "built"


def saved_splits(place: Path, folder: Path) -> Path:
    """What `DatasetDict.save_to_disk` leaves, which a built folder is too."""
    (built(place, folder) / "manifest.json").unlink()
    return folder / "built"


SETS = {
    "folder of images": lambda place, folder: place / "eval" / "pictures",
    "questions without answers": questions,
    "conversations": conversations,
    "folder of Parquet files": saved_set,
    "saved splits": saved_splits,
    "built folder": built,
    "built folder with margins": lambda place, folder: built(place, folder, size="300x300"),
    "hash list": lambda place, folder: write_hashes(place, folder / "list.parquet"),
    "hash list with thumbnails": lambda place, folder: write_hashes(place, folder / "list.parquet", thumbnails=True),
}


@pytest.mark.parametrize("kind", list(SETS))
def test_the_same_rows_are_dropped_whatever_the_set_comes_in(kind: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    report = build(place, tmp_path / "out", SETS[kind](place, tmp_path / "set"))
    found = dropped(tmp_path / "out")
    assert found.keys() == CONTAMINATED.keys()
    if kind != "built folder with margins":  # other options, other pixels
        assert all(said in found[row] for row, said in CONTAMINATED.items())
    assert report.manifest.counts.rejected == {"contaminated": 4}
    assert "of 256" in found[DARKER]
    (against,) = report.manifest.against
    assert against["images"] == 5
    assert any(line.startswith("against ") and "; 5 images" in line for line in report.notes)


def test_each_dropped_row_names_the_evaluation_image(place: Path, tmp_path: Path) -> None:
    build(place, tmp_path / "out", place / "eval" / "pictures" / "a.jpg", questions(place, tmp_path))
    found = dropped(tmp_path / "out")
    assert found[EQUAL] == "is evaluation image pictures/a.jpg, equal pixels"
    assert found[SMALLER].startswith("is nearly evaluation image questions.jsonl:1 (pictures/b.png), distance ")
    assert found[SECOND].startswith("image 2 of 2 is nearly evaluation image questions.jsonl:3 (pictures/d.jpg), dist")


def test_flat_pictures_are_told_by_their_pixels_alone(tmp_path: Path) -> None:
    rows = []
    for i, grey in enumerate((250, 251, 252)):
        save(Image.new("RGB", (300, 300), (grey,) * 3), tmp_path / "train" / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": "What?", "answer": f"grey {grey}"})
    (tmp_path / "train" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save(Image.new("RGB", (300, 300), (251,) * 3), tmp_path / "eval" / "blank.png")
    build(tmp_path, tmp_path / "out", tmp_path / "eval")
    assert dropped(tmp_path / "out") == {1: "is evaluation image eval/blank.png, equal pixels"}


def test_a_duplicate_of_a_contaminated_row_is_not_dropped_for_it(place: Path, tmp_path: Path) -> None:
    """A kept row is never one that was dropped, and duplicates of a contaminated row show the picture themselves."""
    shutil.copytree(place / "train", tmp_path / "train")
    line = {"images": [f"images/{EQUAL}.jpg"], "question": "What?", "answer": f"this {EQUAL}"}
    with (tmp_path / "train" / "rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps(line))
    build(tmp_path, tmp_path / "out", place / "eval" / "pictures")
    assert dropped(tmp_path / "out").keys() == {*CONTAMINATED, ROWS}


def test_every_page_of_an_evaluation_file_counts(place: Path, tmp_path: Path) -> None:
    pages = [picture(50), picture(EQUAL), picture(SMALLER).resize((160, 120))]
    (tmp_path / "eval").mkdir()
    pages[0].save(tmp_path / "eval" / "pages.tif", save_all=True, append_images=pages[1:])
    build(place, tmp_path / "out", tmp_path / "eval")
    assert dropped(tmp_path / "out").keys() == {EQUAL, SMALLER}


def test_what_is_dropped_this_way_is_no_defect_of_the_data(place: Path, tmp_path: Path) -> None:
    build(place, tmp_path / "out", place / "eval" / "pictures", max_reject_rate=0.0)
    with pytest.raises(DataError, match=f"none of {ROWS} rows is left to keep \\(contaminated {ROWS}\\)"):
        build(place, tmp_path / "other", place / "train" / "images")


def test_workers_do_not_matter(place: Path, tmp_path: Path) -> None:
    for workers in (1, 4):
        build(place, tmp_path / str(workers), place / "eval", split="val=0.3", workers=workers)
    one, four = (read_manifest(tmp_path / str(workers)) for workers in (1, 4))
    assert (one.splits, one.fingerprint, one.against) == (four.splits, four.fingerprint, four.against)
    assert (tmp_path / "1" / "rejected.jsonl").read_bytes() == (tmp_path / "4" / "rejected.jsonl").read_bytes()


def test_a_build_knows_what_it_was_held_against(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "eval" / "pictures", tmp_path / "eval")
    first = build(place, tmp_path / "out", tmp_path / "eval")
    assert build(place, tmp_path / "out", tmp_path / "eval").was_unchanged
    with pytest.raises(ConfigError, match="against"):
        build(place, tmp_path / "out")
    elsewhere = build(place, tmp_path / "elsewhere", place / "eval" / "pictures")
    assert elsewhere.manifest.fingerprint == first.manifest.fingerprint
    save(picture(0), tmp_path / "eval" / "f.jpg", quality=50)
    os.utime(tmp_path / "eval", (1, 1))
    again = build(place, tmp_path / "out", tmp_path / "eval")
    assert not again.was_unchanged
    assert dropped(tmp_path / "out").keys() == {*CONTAMINATED, 0}
    assert again.manifest.fingerprint != first.manifest.fingerprint


def test_an_interrupted_build_reads_no_picture_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    values = config(place, tmp_path / "out", place / "eval" / "pictures")
    with monkeypatch.context() as patch:
        patch.setattr("vlmdata.build._finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build_folder(values)
    summaries: list[PartitionSummary] = []
    build_folder(values, on_partition=summaries.append)
    assert [(each.source, each.was_done) for each in summaries] == [("pictures", True), ("rows.jsonl", True)]
    build(place, tmp_path / "fresh", place / "eval" / "pictures")
    assert read_manifest(tmp_path / "out").splits == read_manifest(tmp_path / "fresh").splits
    assert dropped(tmp_path / "out") == dropped(tmp_path / "fresh")
    # nor does a build after a change of another part
    summaries.clear()
    build(place, tmp_path / "out", place / "eval" / "pictures", overwrite=True, keep=("answer",))
    build_folder(
        config(place, tmp_path / "out", place / "eval" / "pictures", overwrite=True), on_partition=summaries.append
    )
    assert [(each.source, each.was_done) for each in summaries] == [("pictures", True), ("rows.jsonl", False)]
    build(place, tmp_path / "out", place / "eval" / "pictures", overwrite=True, keep_stage=False, seed=1)
    assert sorted(path.name for path in (tmp_path / "out" / ".stage").iterdir()) == ["inputs.arrow", "lock"]


def test_a_hub_id_may_name_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def open_hub_set(repository: str, split: str | None, config: str | None) -> Source:
        asked.append((repository, split))
        return Source(name=repository, kind="hub", image_base=Path(), files=(), read=lambda: iter(()))

    monkeypatch.setattr("vlmdata.sources.open_hub_set", open_hub_set)
    open_evaluation_sets(["owner/name@test", "owner/name"], (), InputConfig(source_split="train"))
    assert asked == [("owner/name", "test"), ("owner/name", None)]


def test_pictures_that_cannot_be_compared_are_told(place: Path, tmp_path: Path) -> None:
    rows = [{"image": f"images/{name}"} for name in ("0.jpg", "absent.jpg")]
    (place / "train" / "some.json").write_text(json.dumps(rows))
    report = build(place, tmp_path / "out", place / "train" / "some.json")
    (line,) = [line for line in report.notes if line.startswith("against")]
    assert "; 1 image; 1 cannot be read (image_missing 1), such as some.json:1 (images/absent.jpg): no file" in line
    (tmp_path / "none.json").write_text(json.dumps([{"image": "absent.jpg"}]))
    with pytest.raises(DataError, match=r"none\.json: 1 cannot be read \(image_missing 1\)"):
        build(place, tmp_path / "none", tmp_path / "none.json")
    (tmp_path / "texts.json").write_text(json.dumps([{"question": "What?"}]))
    with pytest.raises(DataError, match=r"texts\.json: no images in it; --image names their column"):
        build(place, tmp_path / "none", tmp_path / "texts.json")
    with pytest.raises(ConfigError, match="absent: no such file or folder"):
        build(place, tmp_path / "none", tmp_path / "absent")


def test_options_that_name_images_serve_evaluation_sets_with_these_columns(place: Path, tmp_path: Path) -> None:
    for folder, names in ((place / "train" / "images", "0 1 2"), (place / "eval" / "pictures", "a c e")):
        (folder / "names.csv").write_text("name,question,answer\n" + "".join(f"{n},What?,{n}\n" for n in names.split()))
    options = {"inputs": [str(place / "train" / "images" / "names.csv")], "image": ("{name}.jpg",)}
    build(place, tmp_path / "out", place / "eval" / "pictures" / "names.csv", **options)
    assert dropped(tmp_path / "out") == {2: "is evaluation image names.csv:0 (a.jpg), equal pixels"}
    for folder in (place / "train" / "images", place / "eval" / "pictures"):
        (folder / "names.csv").unlink()


def test_columns_that_an_evaluation_set_lacks_are_said(place: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(f"image,question\n{place / 'eval' / 'pictures' / 'a.jpg'},What?\n")
    noted: list[str] = []
    for name in ("imgae", "image"):
        values = {"inputs": [str(rows)], "image": [name], "out": tmp_path / "list.parquet", "workers": 0}
        config = BuildConfig.from_values(values | {"min_side": 8, "allow_outside_root": True})
        hash_images(config, thumbnails=False, on_partition=lambda _: None, on_note=noted.append)
    assert "image 'imgae': neither a column nor a template" in noted[0]
    assert "taken from where pictures usually are" in noted[0]
    assert noted[1].endswith("; 1 image")


def test_a_check_finds_what_a_build_finds(place: Path, tmp_path: Path) -> None:
    counts = check_inputs(
        config(place, tmp_path / "unused", place / "eval" / "pictures"),
        rejected=tmp_path / "rejected.jsonl",
        on_partition=lambda _: None,
        on_note=lambda _: None,
    )
    assert counts.rejected == {"contaminated": 4}
    assert dropped(tmp_path).keys() == CONTAMINATED.keys()


def test_hash_lists_hold_no_pictures_and_know_how_they_were_made(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(write_hashes(place, tmp_path / "list.parquet"))
    assert table.column_names == ["name", "pixel_hash", "phash", "is_flat"]
    assert table.column("name").to_pylist() == [f"pictures/{name}" for name in NAMES]
    other = write_hashes(place, tmp_path / "other.parquet", max_side=200)
    report = build(place, tmp_path / "out", other)
    assert any("other options or versions (max_side 200, here 1000)" in line for line in report.notes)
    assert dropped(tmp_path / "out").keys() == CONTAMINATED.keys()
    monkeypatch.setattr("vlmdata.hashing.list_versions", lambda: {**list_versions(), "pillow": "1.0"})
    older = write_hashes(place, tmp_path / "older.parquet")
    report = build(place, tmp_path / "out older", older)
    assert any(f"(pillow 1.0, here {list_versions()['pillow']})" in line for line in report.notes)
    with pytest.raises(ConfigError, match="is a list of hashes already"):
        hash_images(
            BuildConfig.from_values({"inputs": [str(other)], "out": tmp_path / "again.parquet"}),
            thumbnails=False,
            on_partition=lambda _: None,
            on_note=lambda _: None,
        )
    broken = pq.read_table(other).drop_columns(["phash"])
    pq.write_table(broken, tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet: not a readable hash list"):
        build(place, tmp_path / "none", tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("row", "pictures"),
    [
        ({"image": "1.jpg", "file_name": "images/1.jpg"}, ["1.jpg"]),
        ({"image": "no-suffix", "conversations": [{"from": "human", "value": "<image>What?"}]}, ["no-suffix"]),
        ({"images": ["1.jpg", {"bytes": None, "path": "2.jpg"}]}, ["1.jpg", "2.jpg"]),
        ({"images": [{"bytes": b"\xff\xd8", "path": None}]}, [{"bytes": b"\xff\xd8", "path": None}]),
        ({"query": "<img>a b.png</img>What?<img>c</img>"}, ["a b.png", "c"]),
        ({"messages": [{"role": "user", "content": [{"type": "image", "path": "1.jpg"}]}]}, ["1.jpg"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/1"}}]}]},
            ["http://x/1"],
        ),
        ({"messages": [{"content": [{"type": "image", "base64": "AAAA"}]}]}, ["data:image;base64,AAAA"]),
        ({"left_image": "1.png", "right_image": "2.png", "image_id": "12"}, ["1.png", "2.png"]),
        ({"scan": "pages/7.TIF", "note": "see 7"}, ["pages/7.TIF"]),
        ({"question": "Which file?", "url": "http://example.org"}, []),
        ({"image": None, "x": float("nan"), "y": [None, 1, {"z": b"text"}]}, []),
        ({"photo": b"\x89PNG rest"}, [b"\x89PNG rest"]),
    ],
)
def test_pictures_of_rows_of_any_format(row: dict[str, Any], pictures: list[Any]) -> None:
    assert find_pictures(row) == pictures


keys = st.text(max_size=6) | st.sampled_from(["image", "images", "path", "url", "bytes", "type", "base64", "img_1"])
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.binary(max_size=4) | st.text(max_size=9) | st.just("<img>a.png</img>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, values, max_size=4))
def test_pictures_of_rows_of_any_shape(row: dict[str, Any]) -> None:
    for found in find_pictures(row):
        assert isinstance(as_image_refs(found, "image"), list)


def signatures_of(images: list[dict[str, Any]], rows: list[list[int]]) -> Signatures:
    count = len(images)
    return Signatures(
        row_offsets=np.cumsum([0, *map(len, rows)]),
        row_images=np.array([image for row in rows for image in row], np.int64),
        text_hash=np.zeros((len(rows), 16), np.uint8),
        text_length=np.zeros(len(rows), np.int64),
        is_protected=np.zeros(len(rows), np.bool_),
        pixel_hash=np.stack([image["pixels"] for image in images]),
        phash=np.stack([image["phash"] for image in images]),
        thumbnail=np.zeros((count, 4224), np.uint8),
        is_flat=np.array([image["flat"] for image in images]),
        is_salvaged=np.zeros(count, np.bool_),
        original_pixels=np.zeros(count, np.int64),
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_closest_picture_is_found_as_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (6, 32), np.uint8)

    def draw(count: int) -> list[dict[str, Any]]:
        images = []
        for _ in range(count):
            bits = np.unpackbits(base[rng.integers(6)])
            bits[rng.choice(256, rng.integers(0, 16), replace=False)] ^= 1
            pixels = np.zeros(16, np.uint8)
            pixels[0] = rng.integers(60)
            images.append({"phash": np.packbits(bits), "pixels": pixels, "flat": bool(rng.random() < 0.2)})
        return images

    ours, parts = draw(40), [draw(15), draw(10)]
    rows = [rng.integers(0, 40, rng.integers(0, 4)).tolist() for _ in range(30)]
    limit = 12
    wanted = []
    for place, row in enumerate(rows):
        found = []
        for position, number in enumerate(row):
            for part, theirs in enumerate(parts):
                for image, other in enumerate(theirs):
                    apart = int(np.bitwise_count(ours[number]["phash"] ^ other["phash"]).sum())
                    if (ours[number]["pixels"] == other["pixels"]).all():
                        found.append((False, 0, position, part, image))
                    elif apart <= limit and not ours[number]["flat"] and not other["flat"]:
                        found.append((True, apart, position, part, image))
        if found:
            wanted.append((place, *min(found)))
    evaluation = [
        EvaluationImages(
            name=pa.chunked_array([[str(i) for i in range(len(part))]]),
            pixel_hash=np.stack([image["pixels"] for image in part]),
            phash=np.stack([image["phash"] for image in part]),
            is_flat=np.array([image["flat"] for image in part]),
            thumbnail=None,
        )
        for part in parts
    ]
    result = find_contamination(signatures_of(ours, rows), evaluation, limit)
    columns = (result.row, result.is_near, result.distance, result.position, result.part, result.image)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == wanted
    assert 0 < len(wanted) < len(rows)
