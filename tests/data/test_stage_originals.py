"""Images that are stored as they came wait in their own files, and shards hold what was prepared or nothing."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, DataError, build, build_folder, open_folder, pipeline
from vlmdata.stage import StagedFiles, WorkSettings, open_staged


def encode(seed: int, image_format: str = "JPEG", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, image_format, **options)
    return buffer.getvalue()


def described(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    return encode(seed, exif=exif)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Files stored as they are, cut free of metadata, resized, and one that two rows show."""
    files = {
        "plain.jpg": encode(1),
        "described.jpg": described(2),
        "plain.png": encode(3, "PNG"),
        "described.png": encode(4, "PNG", dpi=(300, 300)),
        "plain.webp": encode(5, "WEBP"),
        "large.jpg": encode(6, size=(400, 300)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    shown = [[name] for name in files] + [["plain.jpg", "large.jpg", "described.jpg"]]
    lines = [
        {"images": names, "question": "Which?", "answer": f"{i} has {len(names)}"} for i, names in enumerate(shown)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def build_rows(path: Path, out: Path, **options: object) -> Path:
    values = {"inputs": (str(path),), "out": out, "workers": 0, "min_side": 32, "max_side": 100, **options}
    build_folder(BuildConfig.from_values(values))
    return out


def read_shards(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("[!.]*/*.arrow"))}


def test_shards_are_those_of_rows_that_carry_all_bytes(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"split": "val=0.4", "shard_size": "4096"}
    apart = build_rows(rows, tmp_path / "apart", **options)

    def settle(**values: object) -> WorkSettings:
        return WorkSettings(**{**values, "leave_originals": False})  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "WorkSettings", settle)
    carried = build_rows(rows, tmp_path / "carried", **options)
    assert len(read_shards(apart)) > 2
    assert read_shards(apart) == read_shards(carried)

    def held(out: Path) -> list[int]:
        batches = open_staged(StagedFiles(out / ".stage", 0))
        return [len(image["bytes"]) for batch in batches for row in batch.to_pylist() for image in row["images"]]

    assert [size > 0 for size in held(apart)] == [False] * 5 + [True, False, True, False]
    assert all(held(carried))


def test_files_are_stored_whole_or_without_metadata(rows: Path, tmp_path: Path) -> None:
    train = open_folder(build_rows(rows, tmp_path / "out"), checksums=True).split("train")
    shown = [each for row in train for each in zip(row["images"], row["image_info"], strict=True)]
    stored = {image["path"]: (image["bytes"], info["action"]) for image, info in shown}
    for name in ("plain.jpg", "plain.png"):
        assert stored[name] == ((tmp_path / name).read_bytes(), "stored")
    for name in ("described.jpg", "described.png"):
        data, action = stored[name]
        whole = (tmp_path / name).read_bytes()
        assert (action, len(data) < len(whole)) == ("stripped", True)
        assert Image.open(io.BytesIO(data)).tobytes() == Image.open(io.BytesIO(whole)).tobytes()
    assert stored["large.jpg"][1] == "resized"


def replace_with_another(path: Path) -> None:
    path.write_bytes(encode(9))


def flip_a_byte(path: Path) -> None:
    """Another file that looks the same from outside."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def add_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("name", ["plain.jpg", "described.jpg"])
@pytest.mark.parametrize("change", [replace_with_another, flip_a_byte, add_a_byte, Path.unlink])
def test_a_file_that_changes_meanwhile_ends_the_build_and_the_next_one_prepares_it_again(
    change: Callable[[Path], None], name: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = build.settle_rows

    def change_first(*values: object) -> object:
        change(tmp_path / name)
        return settle(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "settle_rows", change_first)
    with pytest.raises(DataError, match=rf"{name}: the file changed while the build was running; build again"):
        build_rows(rows, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(build, "settle_rows", settle)
    again, anew = build_rows(rows, tmp_path / "out"), build_rows(rows, tmp_path / "anew")
    assert read_shards(again) == read_shards(anew)


def test_the_report_shows_pictures_from_their_files(rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write(json.dumps({"images": ["plain.jpg"], "question": "Which?", "answer": "0 has 1"}) + "\n")
    out = build_rows(rows, tmp_path / "out")
    assert (out / "report.html").read_text().count("data:image/") >= 2
    assert json.loads((out / "manifest.json").read_text())["counts"]["rejected"] == {"duplicate_exact": 1}
