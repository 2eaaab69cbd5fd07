"""A built folder opens with every reader that the contract names, and says no when it is not whole."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from vlmdata.errors import DataError
from vlmdata.manifest import Counts, Manifest, read_manifest, verify_folder, write_manifest
from vlmdata.schema import ARROW_SCHEMA, COLUMNS, features_dict
from vlmdata.set_files import write_set_files
from vlmdata.shard_writer import BATCH_ROWS, SplitWriter, measure_rows, rows_to_batch
from vlmdata.shards import open_folder


def encode_png(width: int, height: int, level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), level).save(buffer, "PNG")
    return buffer.getvalue()


def make_row(index: int, images: int = 1) -> dict:
    sizes = [(20 + index % 7, 30 + i) for i in range(images)]
    info = [
        {
            "original_width": 2 * w,
            "original_height": 2 * h,
            "width": w,
            "height": h,
            "format": "PNG",
            "action": "resized",
            "window": None,
            "frame": None,
            "salvaged": False,
            "note": None,
            "pixel_hash": "ab" * 16,
            "phash": "cd" * 32,
        }
        for w, h in sizes
    ]
    content = [{"type": "image", "text": None}] * images + [{"type": "text", "text": f"What is number {index}?"}]
    return {
        "id": f"row-{index}",
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": f"It is {index}."}]},
        ],
        "images": [
            {"bytes": encode_png(w, h, index % 256), "path": f"{index}-{i}.png"} for i, (w, h) in enumerate(sizes)
        ],
        "references": [f"It is {index}.", str(index)],
        "objects": None
        if index % 2
        else {"bbox": [[0.0, 1.0, 2.0, 3.0]], "label": ["thing"], "image_index": [0], "format": "xyxy"},
        "image_info": info,
        "meta": json.dumps({"index": index}),
        "source": f"rows.jsonl:{index}",
    }


def write_folder(folder: Path, splits: dict[str, list[dict]], shard_bytes: int = 1 << 30) -> Manifest:
    entries = {}
    for name, rows in splits.items():
        with SplitWriter(folder, name, shard_bytes=shard_bytes) as writer:
            writer.write_rows(rows)
            entries[name] = writer.close()
    write_set_files(folder, entries)
    kept = sum(entry.rows for entry in entries.values())
    manifest = Manifest(splits=entries, counts=Counts(read=kept, kept=kept), fingerprint="f" * 16)
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [make_row(i, images=i % 3) for i in range(2 * BATCH_ROWS + 44)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> Path:
    folder = tmp_path_factory.mktemp("built")
    write_folder(folder, {"train": rows, "val": rows[:5], "test": []}, shard_bytes=60_000)
    return folder


def test_rows_come_back_as_they_went_in(built: Path, rows: list[dict]) -> None:
    folder = open_folder(built, checksums=True)
    train = folder.split("train")
    assert len(train) == len(rows)
    assert len(train.paths) > 1
    assert [train[0], train[300], train[-1]] == [rows[0], rows[300], rows[-1]]
    assert train[1:4] == rows[1:4]
    assert list(train.iterate(["id"])) == [{"id": row["id"]} for row in rows]
    assert train.column("references") == [row["references"] for row in rows]
    assert train.stored_sizes() == [[(i["width"], i["height"]) for i in row["image_info"]] for row in rows]
    assert len(folder.split("test")) == 0
    assert list(folder.split("test").iterate()) == []
    with pytest.raises(IndexError):
        train[len(rows)]


def test_a_split_travels_to_another_process_without_its_rows(built: Path, rows: list[dict]) -> None:
    train = open_folder(built).split("train")
    assert train[7] == rows[7]
    sent = pickle.dumps(train)
    assert len(sent) < 2_000
    assert pickle.loads(sent)[7] == rows[7]


def test_load_from_disk_gives_rgb_images(built: Path, rows: list[dict]) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(built))
    assert {name: split.num_rows for name, split in loaded.items()} == {"train": len(rows), "val": 5, "test": 0}
    row = loaded["train"][2]
    assert [image.mode for image in row["images"]] == ["RGB", "RGB"]
    assert row["images"][1].size == (22, 31)
    assert loaded["train"][1]["objects"] is None
    assert row["objects"]["bbox"] == [[0.0, 1.0, 2.0, 3.0]]
    assert loaded["train"].features["images"] == datasets.List(datasets.Image(mode="RGB"))
    assert loaded["train"].features.to_dict() == features_dict()
    assert loaded["train"].features.arrow_schema.metadata == ARROW_SCHEMA.metadata


def test_load_dataset_finds_the_shards_by_the_card(built: Path, rows: list[dict], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(built), cache_dir=str(tmp_path))
    assert {name: split.num_rows for name, split in loaded.items()} == {"train": len(rows), "val": 5}
    assert loaded["val"][1]["messages"] == rows[1]["messages"]
    assert loaded["train"][1]["objects"] is None


def test_polars_and_duckdb_read_the_shards(built: Path, rows: list[dict]) -> None:
    polars = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    frames = [polars.read_ipc_stream(path) for path in open_folder(built).split("train").paths]
    assert polars.concat(frames)["id"].to_list() == [row["id"] for row in rows]
    table = open_folder(built).split("train").to_table(["id", "image_info"])
    found = duckdb.from_arrow(table).aggregate("sum(len(image_info))").fetchall()
    assert found == [(sum(len(row["images"]) for row in rows),)]


def test_shards_do_not_depend_on_the_pieces_the_rows_came_in(tmp_path: Path, rows: list[dict]) -> None:
    def write(folder: Path, cuts: list[int]) -> list[tuple[str, int]]:
        with SplitWriter(folder, "train", shard_bytes=60_000) as writer:
            for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
                writer.write_batch(rows_to_batch(rows[begin:end]))
            return [(shard.sha256, shard.rows) for shard in writer.close().shards]

    whole = write(tmp_path / "a", [])
    assert write(tmp_path / "b", [1, 2, 255, 256, 257, 400]) == whole
    states = [json.loads((tmp_path / name / "train" / "state.json").read_text()) for name in "ab"]
    assert states[0] == states[1]


def test_rows_are_measured_by_their_images_and_texts(rows: list[dict]) -> None:
    measured = measure_rows(rows_to_batch(rows[:10])).tolist()
    for row, size in zip(rows[:10], measured, strict=True):
        images = sum(len(image["bytes"]) for image in row["images"])
        texts = sum(len((part["text"] or "").encode()) for m in row["messages"] for part in m["content"])
        assert size - images - texts == measured[0] - len("What is number 0?It is 0.")


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, rows: list[dict]) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_folder(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no manifest\.json"):
        open_folder(tmp_path)
    manifest = write_folder(tmp_path, {"train": rows[:20]})
    assert verify_folder(tmp_path, checksums=True) == manifest == read_manifest(tmp_path)
    shard = tmp_path / manifest.splits["train"].shards[0].file
    content = shard.read_bytes()

    shard.write_bytes(content[:-10])
    with pytest.raises(DataError, match="bytes, the manifest says"):
        open_folder(tmp_path)
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    shard.write_bytes(changed)
    open_folder(tmp_path)
    with pytest.raises(DataError, match="SHA-256"):
        open_folder(tmp_path, checksums=True)
    shard.unlink()
    with pytest.raises(DataError, match="missing"):
        open_folder(tmp_path)
    with pytest.raises(DataError, match="no split 'dev'; it has 'train'"):
        shard.write_bytes(content) and open_folder(tmp_path).split("dev")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"splits": [1]}, "not a manifest"),
        ({"counts": {}}, "not a manifest"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    write_folder(tmp_path, {"train": [make_row(0)]})
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_a_shard_with_other_columns_is_refused(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path, {"train": [make_row(0)]})
    path = tmp_path / manifest.splits["train"].shards[0].file
    size = path.stat().st_size
    with pa.ipc.new_stream(str(path), pa.schema({"id": pa.string()})) as stream:
        stream.write_batch(pa.record_batch({"id": ["x" * size]}).slice(0, 1))
    split = open_folder.__globals__["Split"]("train", [path], 1)
    with pytest.raises(DataError, match="not the columns"):
        split[0]


def test_reading_needs_neither_click_nor_pil_nor_torch_nor_datasets() -> None:
    code = (
        "import sys, vlmdata, vlmdata.schema, vlmdata.manifest, vlmdata.shards, vlmdata.errors\n"
        "print(sorted({'click', 'PIL', 'torch', 'datasets', 'yaml'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_columns_are_those_of_the_contract() -> None:
    assert COLUMNS == ("id", "messages", "images", "references", "objects", "image_info", "meta", "source")
