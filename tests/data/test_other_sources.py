"""Parquet, Arrow, saved sets, image folders, the hub, and how an input is told."""

from __future__ import annotations

import gzip
import io
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmdata.config import InputConfig
from vlmdata.errors import ConfigError, DataError, MissingDependencyError, ResourceError
from vlmdata.sources import Source, open_sources
from vlmdata.sources.split_choice import choose_split, slice_rows


def encode_image(level: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(source: Source) -> list[dict]:
    found = list(source.read())
    assert list(source.read()) == found
    return [row for _, row in found]


def open_one(path: Path | str, **options) -> Source:
    (source,) = open_sources([str(path)], InputConfig(**options))
    return source


@pytest.fixture
def table() -> pa.Table:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table(
        {
            "image": pa.array([{"bytes": encode_image(i), "path": f"{i}.png"} for i in range(70)], image),
            "text": [f"text {i}" for i in range(70)],
        }
    )


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow stream", "arrow file"])
def test_columnar_files(tmp_path: Path, table: pa.Table, kind: str) -> None:
    path = tmp_path / f"rows.{kind.split()[0]}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=33)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    source = open_one(path)
    assert rows_of(source) == table.to_pylist()
    assert [index for index, _ in source.read()] == list(range(70))


def test_a_broken_columnar_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"not a readable parquet file"):
        rows_of(open_one(path))


def test_saved_sets_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "n": datasets.Value("int64")}
    )
    records = [{"image": {"bytes": encode_image(i), "path": None}, "label": i % 2, "n": i} for i in range(10)]
    train = datasets.Dataset.from_list(records, features=features)
    datasets.DatasetDict({"train": train, "test": train.select([1, 3])}).save_to_disk(tmp_path / "dict")
    train.save_to_disk(tmp_path / "single")

    source = open_one(tmp_path / "dict")
    assert source.name == "dict/train"
    assert [(row["label"], row["n"]) for row in rows_of(source)] == [("dog" if i % 2 else "cat", i) for i in range(10)]
    assert rows_of(source)[3]["image"]["bytes"] == encode_image(3)
    assert [row["n"] for row in rows_of(open_one(tmp_path / "dict", source_split="test"))] == [1, 3]
    assert [row["n"] for row in rows_of(open_one(tmp_path / "single"))] == list(range(10))
    for text in ("train[:3]", "train[-2:]", "train[20%:50%]", "train[4:-4]"):
        expected = train["n"][slice(*slice_of(text, 10))]
        assert [row["n"] for row in rows_of(open_one(tmp_path / "dict", source_split=text))] == expected
    with pytest.raises(ConfigError, match="no split 'val'; it has 'train', 'test'"):
        open_one(tmp_path / "dict", source_split="val")


def slice_of(text: str, total: int) -> tuple:
    begin, end = text.removeprefix("train[").removesuffix("]").split(":")
    percent = [int(x[:-1]) * total // 100 if x.endswith("%") else int(x) if x else None for x in (begin, end)]
    return tuple(percent)


def test_choose_split() -> None:
    assert choose_split(None, ["only"], "x") == ("only", None, None)
    assert choose_split(None, ["test", "train"], "x") == ("train", None, None)
    with pytest.raises(ConfigError, match="name one of its splits"):
        choose_split(None, ["a", "b"], "x")
    with pytest.raises(ConfigError, match="must look like"):
        choose_split("train[3]", ["train"], "x")
    rows = [(i, {"n": i}) for i in range(4)]
    assert list(slice_rows(iter(rows), "1", "3", 4)) == rows[1:3]


def test_image_folder_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(encode_image())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sub/a.png", "text": "red"}\nbroken\n')
    source = open_one(tmp_path)
    rows = rows_of(source)
    assert rows[0] == {"file_name": "sub/a.png", "text": "red", "image": "sub/a.png"}
    assert rows[1].reason == "json_broken"
    assert source.image_base == tmp_path
    assert source.kind == "image folder with metadata.jsonl"


def test_image_folder_by_labels_and_splits(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").write_bytes(encode_image())
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    rows = rows_of(open_one(tmp_path))
    assert rows == [
        {"id": "cat/1.png", "image": "cat/1.png", "file_name": "1.png", "label": "cat"},
        {"id": "dog/1.png", "image": "dog/1.png", "file_name": "1.png", "label": "dog"},
    ]
    assert len(rows_of(open_one(tmp_path, source_split="test"))) == 1
    assert open_one(tmp_path / "train").kind.startswith("image folder, labels")


def test_folder_of_data_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "a.csv").write_text("a\n2\n")
    (tmp_path / "_about.json").write_text("{}")
    sources = open_sources([str(tmp_path)], InputConfig())
    assert [source.name for source in sources] == [f"{tmp_path.name}/a.csv", f"{tmp_path.name}/b/rows.jsonl"]


def test_names_are_relative_to_what_the_inputs_share(tmp_path: Path) -> None:
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "rows.jsonl").write_text('{"a": 1}\n')
    paths = [str(tmp_path / place / "rows.jsonl") for place in ("x", "y")]
    assert [source.name for source in open_sources(paths, InputConfig())] == ["x/rows.jsonl", "y/rows.jsonl"]
    assert [source.name for source in open_sources(paths[:1], InputConfig())] == ["rows.jsonl"]


def test_inputs_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError) as caught:
        open_sources([str(tmp_path / "absent.csv"), str(tmp_path / "notes.txt")], InputConfig())
    assert len(caught.value.problems) == 2
    assert "no such file or folder" in caught.value.problems[0]
    assert "files of this kind are not read" in caught.value.problems[1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without data files"):
        open_sources([str(tmp_path / "empty")], InputConfig())
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError, match="source_split is for"):
        open_sources([str(tmp_path / "a.csv")], InputConfig(source_split="train"))


def test_the_hub_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vlmdata\[hf\]'"):
        open_sources(["owner/name"], InputConfig())


def test_hub_sets_are_read_undecoded(tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from vlmdata.sources.hub import open_hub_set

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    # `datasets` takes a local folder where a repository's name could stand
    source = open_hub_set(str(tmp_path / "set"), "train[:5]", None)
    assert rows_of(source) == table.to_pylist()[:5]
    with pytest.raises(ConfigError, match="no split 'test'"):
        open_hub_set(str(tmp_path / "set"), "test", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "not readable"),
        ("{", "not readable"),
        ("{}", "not what save_to_disk of datasets writes"),
        ('{"splits": 3}', "not what save_to_disk of datasets writes"),
        ('{"splits": ["../elsewhere"]}', "'../elsewhere' is not the name of something beside it"),
        ('{"splits": [3]}', "3 is not the name"),
    ],
)
def test_broken_descriptions_of_saved_sets_are_told_in_a_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(DataError, match=words):
        open_sources([str(tmp_path)], InputConfig())


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz"])
@pytest.mark.parametrize("damage", ["no gzip", "cut short", "overwritten"])
def test_broken_gzip_files_are_told_in_a_line(tmp_path: Path, name: str, damage: str) -> None:
    text = "a,b\n" + "".join(f"{i},{i * 7919 % 4001}\n" for i in range(20_000))
    content = gzip.compress(text.encode(), mtime=0)
    if damage == "no gzip":
        content = b"plain text\n"
    elif damage == "cut short":
        content = content[: len(content) // 2]
    else:
        content = content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: not a whole gzip file: "):
        list(open_one(tmp_path / name).read())


def test_linked_folders_are_read_and_loops_are_not(tmp_path: Path) -> None:
    for place in ("photos/cat", "elsewhere/dog"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").write_bytes(encode_image())
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "photos" / "loop").symlink_to(".")
    (tmp_path / "photos" / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "photos" / "gone").symlink_to("nowhere")
    assert [row["id"] for row in rows_of(open_one(tmp_path / "photos"))] == ["cat/1.png", "dog/1.png"]


def test_linked_files_of_a_folder_go_by_their_names_in_it(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er" / "set").mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rows.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "deep" / "er" / "set" / "one.jsonl").symlink_to(tmp_path / "rows.jsonl")
    (tmp_path / "deep" / "er" / "set" / "two").symlink_to(tmp_path / "more")
    sources = open_sources([str(tmp_path / "deep" / "er" / "set")], InputConfig())
    assert [source.name for source in sources] == ["set/one.jsonl", "set/two/rows.jsonl"]


def test_inputs_whose_names_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xf6ws.jsonl"))
    path.write_text('{"a": 1}\n')
    for given in (path, tmp_path):
        with pytest.raises(ConfigError, match=r"r.udcf6ws.jsonl': its name is not UTF-8; rename the file"):
            open_sources([str(given)], InputConfig())


def test_hidden_folders_hold_no_rows(tmp_path: Path) -> None:
    for place in (".ipynb_checkpoints", "a/.cache"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "a" / "rows.jsonl").write_text('{"a": 1}\n')
    assert [source.name for source in open_sources([str(tmp_path)], InputConfig())] == [f"{tmp_path.name}/a/rows.jsonl"]


def test_an_unfinished_build_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "out" / ".stage").mkdir(parents=True)
    (tmp_path / "out" / "rejected.jsonl").write_text('{"source": "rows.jsonl", "row": 0}\n')
    with pytest.raises(DataError, match="out: an unfinished build, not a set"):
        open_sources([str(tmp_path / "out")], InputConfig())


@pytest.mark.parametrize("name", ["1.png", "rows.jsonl"])
def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_bytes(encode_image())
    listed = os.scandir

    def scan(place: str) -> Any:
        if os.path.basename(place) == "b":
            raise PermissionError(13, "Permission denied", place)
        return listed(place)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(ResourceError, match="b: the folder cannot be listed: Permission denied"):
        open_sources([str(tmp_path)], InputConfig())
