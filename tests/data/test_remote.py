"""Inputs and outputs behind URLs, against an S3-speaking server on the loopback: the same bytes as in local folders."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmdata import BuildConfig, ConfigError, DataError, MissingDependencyError, ResourceError, open_folder
from vlmdata.build import BuildReport, build_folder
from vlmdata.cli import main
from vlmdata.config import InputConfig
from vlmdata.locations import is_remote, kind_of, locator, open_location, relative_name, stamp_remote
from vlmdata.sample import ImageRef, Problem
from vlmdata.sources.image_bytes import ImageLoader, LoadedImage

SMALL = {"min_side": 8, "max_side": 64}


def encode_image(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write_set(folder: Path, rows: int = 12) -> Path:
    """Rows about photos, one of which is absent, one no image, and one outside of the folder."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(rows):
        (folder / "images" / f"{i}.jpg").write_bytes(encode_image(i) if i != 5 else b"no image at all")
        lines.append({"image": f"{i}.jpg", "question": "Which one?", "answer": f"number {i}"})
    lines[3]["image"] = "absent.jpg"
    lines[7]["image"] = "../outside.jpg"
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def build(inputs: str | Path, out: str | Path, **values: object) -> BuildReport:
    return build_folder(BuildConfig.from_values({**SMALL, "workers": 0, "inputs": [str(inputs)], "out": out, **values}))


def checksums(report: BuildReport) -> dict[str, str]:
    return {shard.file: shard.sha256 for split in report.manifest.splits.values() for shard in split.shards}


@pytest.fixture
def both(s3: Any, tmp_path: Path) -> Path:
    """The same set in a local folder, which is returned, and in s3://bucket/set."""
    folder = write_set(tmp_path / "set")
    s3.put(str(folder), "bucket/set", recursive=True)
    s3.invalidate_cache()
    return folder


def test_a_build_in_a_bucket_has_the_bytes_of_a_local_one(s3: Any, both: Path, tmp_path: Path) -> None:
    options = {"split": "val=0.3", "shard_size": "4KB"}
    here = build(both / "set.jsonl", tmp_path / "out", image_root=str(both / "images"), **options)
    # in a process of its own, as a worker is
    options |= {"image_root": "s3://bucket/set/images", "workers": 1}
    there = build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options)
    assert checksums(there) == checksums(here)
    assert len(checksums(there)) > 2
    assert there.manifest.fingerprint == here.manifest.fingerprint
    assert dict(there.manifest.counts.rejected) == {"image_missing": 1, "image_outside_root": 1, "image_unreadable": 1}
    s3.invalidate_cache()
    names = {name.removeprefix("bucket/out/") for name in s3.find("bucket/out")}
    local = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith(".")} == {name for name in local if name[0] != "."}
    for name in ("rejected.jsonl", "stats.json", "README.md"):
        assert s3.cat_file(f"bucket/out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert not [path for path in (tmp_path / "cache" / "builds").rglob("*") if path.is_file() and path.name != "lock"]


def test_an_unchanged_set_is_not_built_again_and_a_changed_one_is(s3: Any, both: Path) -> None:
    options = {"image_root": "s3://bucket/set/images"}
    first = build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options)
    before = s3.modified("bucket/out/train/data-00000-of-00001.arrow")
    assert build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options).was_unchanged
    s3.pipe_file("bucket/set/images/0.jpg", encode_image(99))
    second = build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options)
    assert not second.was_unchanged
    assert checksums(second) != checksums(first)
    s3.invalidate_cache()
    assert s3.modified("bucket/out/train/data-00000-of-00001.arrow") >= before
    with pytest.raises(ConfigError, match=r"^s3://bucket/out: was built with other options \(seed 0 -> 1\)"):
        build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options, seed=1)
    split = build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options, split="val=0.2", overwrite=True)
    build("s3://bucket/set/set.jsonl", "s3://bucket/out", **options, overwrite=True)
    assert "val" in split.manifest.splits
    s3.invalidate_cache()
    assert not s3.exists("bucket/out/val")


def test_a_build_that_broke_off_while_uploading_goes_on(
    s3: Any, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmdata.output_folder

    real = vlmdata.output_folder.copy_file

    def fail(source: Path, target: Path) -> None:
        if source.suffix == ".arrow":
            raise ConnectionError("the line is cut")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(vlmdata.output_folder, "copy_file", fail)
        with pytest.raises(ResourceError, match="the line is cut"):
            build("s3://bucket/set/set.jsonl", "s3://bucket/out", image_root="s3://bucket/set/images")
    s3.invalidate_cache()
    assert not s3.exists("bucket/out/manifest.json")
    again = build("s3://bucket/set/set.jsonl", "s3://bucket/out", image_root="s3://bucket/set/images")
    assert again.partitions_reused == 1
    here = build(both / "set.jsonl", tmp_path / "out", image_root=str(both / "images"))
    assert checksums(again) == checksums(here)


def test_other_inputs_are_read_from_a_bucket(s3: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "photos" / "cat").mkdir(parents=True)
    (folder / "photos" / ".hidden").mkdir()
    for place, seed in (("cat/1.jpg", 1), ("cat/2.jpg", 2), (".hidden/3.jpg", 3)):
        (folder / "photos" / place).write_bytes(encode_image(seed))
    (folder / "rows").mkdir()
    rows = [{"image": {"bytes": encode_image(i), "path": None}, "q": "Which?", "a": f"{i}"} for i in range(10, 13)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows" / "a.parquet")
    import gzip
    import tarfile

    with gzip.open(folder / "rows" / "b.csv.gz", "wt") as file:
        file.write("image,q,a\n../photos/cat/1.jpg,Who?,one\n")
    with tarfile.open(folder / "tar.tar", "w") as tar:
        for name, data in (("k1.jpg", encode_image(20)), ("k1.txt", b"a caption")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    s3.put(str(folder), "bucket/set", recursive=True)
    for name, options in {
        "photos": {"image": ("image",), "instruction": "What is it?", "response": "label"},
        "rows": {"image": ("image",), "instruction": "q", "response": "a", "allow_outside_root": True},
        "tar.tar": {"instruction": "Describe it.", "response": "text"},
    }.items():
        here = build(folder / name, tmp_path / "out" / name, **options)
        there = build(f"s3://bucket/set/{name}", f"s3://bucket/out/{name}", **options)
        assert checksums(there) == checksums(here), name
        assert dict(there.manifest.counts.rejected) == dict(here.manifest.counts.rejected) == {}
        assert [each["rows"] for each in there.manifest.inputs] == [each["rows"] for each in here.manifest.inputs]


@pytest.mark.parametrize(
    ("location", "outcome"),
    [
        ("a.jpg", "a.jpg"),
        ("./x/../a.jpg", "a.jpg"),
        ("s3://bucket/images/a.jpg", "a.jpg"),
        ("absent.jpg", "image_missing"),
        ("sub", "image_unreadable"),
        ("../secret.jpg", "image_outside_root"),
        ("/bucket/secret.jpg", "image_outside_root"),
        ("s3://bucket/secret.jpg", "image_outside_root"),
        ("s3://bucket/images/../secret.jpg", "image_outside_root"),
        ("s3://bucket/images-beside/a.jpg", "image_outside_root"),
        ("../images-beside/a.jpg", "image_outside_root"),
        ("simplecache::s3://bucket/images/a.jpg", "image_outside_root"),
        ("a.jpg::s3://bucket/secret.jpg", "image_outside_root"),
        ("a\0.jpg", "image_outside_root"),
        ("*.jpg", "image_missing"),
        ("file:///etc/passwd", "image_url_refused"),
        ("gs://bucket/images/a.jpg", "image_url_refused"),
        ("big.jpg", "image_too_large_bytes"),
        ("empty.jpg", "empty.jpg"),
        ("x" * 2000, "image_missing"),
    ],
)
def test_names_stay_under_a_remote_root(s3: Any, location: str, outcome: str) -> None:
    for name, data in {"images/a.jpg": b"a", "images/sub/a.jpg": b"sub", "images-beside/a.jpg": b"b"}.items():
        s3.pipe_file(f"bucket/{name}", data)
    s3.pipe_file("bucket/secret.jpg", b"secret")
    s3.pipe_file("bucket/images/big.jpg", bytes(101))
    s3.pipe_file("bucket/images/empty.jpg", b"")
    loader = ImageLoader(InputConfig(image_root="s3://bucket/images"), Path("/nowhere"), 100)
    loaded = loader.load(ImageRef(location, None))
    assert (loaded.reason if isinstance(loaded, Problem) else loaded.name) == outcome
    assert not isinstance(loaded, LoadedImage) or b"secret" not in loaded.data


def test_local_roots_do_not_lead_into_a_bucket(s3: Any, tmp_path: Path) -> None:
    loader = ImageLoader(InputConfig(allow_outside_root=True), tmp_path, 100)
    loaded = loader.load(ImageRef("s3://bucket/a.jpg", None))
    assert isinstance(loaded, Problem)
    assert loaded.reason == "image_url_refused"


def test_commands_take_a_remote_folder(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--image-root", "s3://bucket/set/images", "--min-side", "8", "--workers", "0"]
    assert main(["check", "s3://bucket/set/set.jsonl", *options]) == 0
    assert "read 12 = kept 9 + rejected 3" in capsys.readouterr().out
    assert main(["build", "s3://bucket/set/set.jsonl", *options, "--out", "s3://bucket/out/"]) == 0
    assert "s3://bucket/out: train 9 rows" in capsys.readouterr().out
    assert main(["check", "s3://bucket/out"]) == 0
    assert "s3://bucket/out: whole; train 9 rows; checksums agree, 9 images decode" in capsys.readouterr().out
    assert main(["stats", "s3://bucket/out"]) == 0
    assert "train: 9 rows" in capsys.readouterr().out
    assert main(["preview", "s3://bucket/out"]) == 0
    assert (tmp_path / "out.html").read_text().count("<img") == 9


def test_a_remote_folder_is_opened_from_a_copy_that_is_fetched_once(s3: Any, both: Path, tmp_path: Path) -> None:
    build(both / "set.jsonl", "s3://bucket/out", image_root=str(both / "images"))
    first = open_folder("s3://bucket/out", checksums=True)
    assert len(first.split("train")) == 9
    assert first.path.is_relative_to(tmp_path / "cache")
    shard = first.split("train").paths[0]
    before = shard.stat().st_mtime_ns
    # a Path has swallowed a slash, as in vlmtrain's --data
    assert open_folder(Path("s3://bucket/out")).split("train").paths[0].stat().st_mtime_ns == before
    s3.pipe_file("bucket/set2.jsonl", (both / "set.jsonl").read_bytes().replace(b"number 0", b"another"))
    build("s3://bucket/set2.jsonl", "s3://bucket/out", image_root=str(both / "images"), overwrite=True)
    assert open_folder("s3://bucket/out").split("train")[0]["references"] == ["another"]
    data = bytearray(s3.cat_file("bucket/out/train/data-00000-of-00001.arrow"))
    data[len(data) // 2] ^= 1
    s3.pipe_file("bucket/out/train/data-00000-of-00001.arrow", bytes(data))
    import shutil

    shutil.rmtree(tmp_path / "cache" / "folders")
    with pytest.raises(DataError, match="its SHA-256 is not the manifest's"):
        open_folder("s3://bucket/out")


def run(*arguments: str, **environment: str | None) -> tuple[int, str]:
    """Run the program apart, because file systems remember credentials; return its code and what it says on stderr."""
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-m", "vlmdata", *arguments]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
    return result.returncode, result.stderr


def test_what_is_wrong_with_a_bucket_is_said_in_one_line(s3: Any, both: Path, tmp_path: Path) -> None:
    rows = "s3://bucket/set/set.jsonl"
    with pytest.raises(DataError, match=r"^s3://nobucket/set.jsonl: no such file, folder or bucket$"):
        build("s3://nobucket/set.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match=r"^s3://bucket/none: no such file, folder or bucket$"):
        build("s3://bucket/none", tmp_path / "out")
    with pytest.raises(ResourceError, match=r"^s3://nobucket/out.*bucket does not exist"):
        build(both / "set.jsonl", "s3://nobucket/out", image_root=str(both / "images"))
    with pytest.raises(ConfigError, match=r"^s3://bucket/set: is not empty and was not made by vlmdata build"):
        build(both / "set.jsonl", "s3://bucket/set")
    with pytest.raises(ConfigError, match=r"^s3://bucket/set/set.jsonl: is a file, not a folder"):
        build(both / "set.jsonl", rows)
    with pytest.raises(DataError, match=r"^s3://bucket/set: no manifest.json \(the build did not finish, or "):
        open_folder("s3://bucket/set")
    nobody = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": str(tmp_path)}
    code, said = run("build", rows, "--out", str(tmp_path / "out"), **nobody)
    assert (code, said.strip()) == (5, f"error: {rows}: Unable to locate credentials")


def test_a_server_that_is_gone_ends_the_build(both: Path, tmp_path: Path) -> None:
    gone = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    code, said = run("check", "s3://bucket/set/set.jsonl", **gone)
    assert code == 5
    assert said.startswith("error: s3://bucket/set/set.jsonl/manifest.json: Could not connect to the endpoint URL")
    assert said.count("\n") == 1


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(MissingDependencyError, match=r"^s3://b/x: .* pip install 'vlmdata\[s3\]'$"):
        open_location("s3://b/x")
    with pytest.raises(MissingDependencyError, match=r"pip install 'vlmdata\[gs\]'$"):
        open_location("gs://b/x")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vlmdata\[gs\]'$"):
        open_location("gs://b/x")
    with pytest.raises(ConfigError, match="chained"):
        open_location("simplecache::s3://b/x")
    with pytest.raises(ConfigError, match="foo"):
        open_location("foo://b/x")


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [is_remote(each) for each in ("s3://b/x", Path("s3://b/x"), "/a", "a/b", "C:/x", "file:///x", "a:b")] == [
        True,
        True,
        *[False] * 5,
    ]
    assert locator(Path("S3://b/x")) == "s3://b/x"
    assert locator("s3://b/x/") == "s3://b/x"
    assert open_location(f"file://{tmp_path}") == tmp_path
    (tmp_path / "dc:").mkdir()
    assert not is_remote("dc:/title")
    memory = open_location("memory://place/sub")
    assert kind_of(memory) is None
    (memory / "a.txt").write_text("a")
    assert (kind_of(memory), kind_of(memory / "a.txt")) == ("folder", "file")
    assert relative_name(memory / "a.txt", open_location("memory://place")) == "sub/a.txt"
    before = stamp_remote(memory)
    (memory / "b.txt").write_text("b")
    assert stamp_remote(memory) != before
    assert stamp_remote(memory / "c.txt") == (-1, 0)
