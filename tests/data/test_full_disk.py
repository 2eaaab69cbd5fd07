"""A disk that is full or cannot be written: one line, exit code 5, no manifest, and the next build goes on."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, ResourceError, build_folder
from vlmdata.cli import main

OPTIONS = {"min_side": 8, "workers": 0, "split": "val=0.2"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows with a picture each."""
    folder = tmp_path_factory.mktemp("set")
    lines = []
    for i in range(40):
        coarse = np.random.default_rng(i).integers(0, 256, (15, 20, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(buffer, "PNG")
        (folder / f"{i}.png").write_bytes(buffer.getvalue())
        lines.append({"image": f"{i}.png", "question": "Which one?", "answer": f"number {i}"})
    lines[3]["image"] = "absent.png"
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "set.jsonl"


def build(rows: Path, out: Path) -> dict[str, bytes]:
    """Build and return the files of the folder."""
    build_folder(BuildConfig.from_values({**OPTIONS, "inputs": [str(rows)], "out": out}))
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".stage" not in path.parts
    }


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system in memory with the given options, or change them."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def change(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", f"remount,{options}" if mounted else options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted = True
        return place

    yield change
    if mounted:
        # a build that failed may still hold mapped files of it
        gc.collect()
        subprocess.run(["umount", str(place)], check=True)


def test_whatever_does_not_fit_ends_the_build(rows: Path, tmp_path: Path, mount: Callable[[str], Path]) -> None:
    whole = build(rows, tmp_path / "whole")
    refusals = []
    for kilobytes in (40, 160, 320, 400, 480, 560, 640, 800):
        out = mount(f"size={kilobytes}k") / "out"
        try:
            build(rows, out)
        except ResourceError as error:
            refusals.append(str(error))
            assert not (out / "manifest.json").exists()
    assert len(refusals) >= 3
    assert all(each.endswith(": the disk is full; what is done is kept for the next build") for each in refusals)
    assert build(rows, mount("size=64m") / "out") == whole


# Each is the last thing that is written of its kind; the sizes above may pass it by.
@pytest.mark.parametrize(
    "writer",
    [
        "vlmdata.stage.staged.write_json_atomically",
        "vlmdata.stage.gather._join_thumbnails",
        "vlmdata.pipeline.write_rejections",
        "vlmdata.shard_writer._HashingFile.write",
        "vlmdata.set_files._write_json",
        "vlmdata.build.write_set_files",
        "vlmdata.build.write_json_atomically",
        "vlmdata.build.write_report",
        "vlmdata.build.write_stamps",
        "vlmdata.output_folder.os.replace",
        "vlmdata.output_folder.write_manifest",
    ],
)
def test_a_full_disk_at_every_writer(
    writer: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    arguments = ["build", str(rows), "--min-side", "8", "--workers", "0", "--split", "val=0.2", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(writer, fail)
        assert main(arguments) == 5
    said = capsys.readouterr().err
    assert said == f"error: {out}: the disk is full; what is done is kept for the next build\n"
    assert not (out / "manifest.json").exists()
    assert main(arguments) == 0
    assert (out / "manifest.json").exists()


def test_a_folder_that_cannot_be_written(
    rows: Path, tmp_path: Path, mount: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount("size=64m")
    build(rows, disk / "whole")
    mount("ro")
    arguments = ["--min-side", "8", "--workers", "0", "--split", "val=0.2"]
    for command, said in {
        ("build", str(rows), *arguments, "--out", str(disk / "out")): f"{disk}/out: cannot be written: ",
        ("build", str(rows), *arguments, "--out", str(disk / "whole")): f"{disk}/whole: ",
        ("preview", str(disk / "whole")): f"{disk}/whole.html: ",
        ("check", str(rows), *arguments[:4], "--rejected", str(disk / "rejected.jsonl")): f"{disk}/rejected.jsonl: ",
    }.items():
        capsys.readouterr()
        assert main(command) == 5, command
        assert capsys.readouterr().err == f"error: {said}Read-only file system\n"
    assert not (disk / "out").exists()
    # what is read is not written to
    assert main(["check", str(disk / "whole")]) == 0
    assert main(["stats", str(disk / "whole")]) == 0


def test_a_check_and_a_preview_promise_nothing_and_leave_nothing(
    rows: Path, tmp_path: Path, mount: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    build(rows, tmp_path / "out")
    disk = mount("size=48k")
    page = disk / "page.html"
    page.write_text("an older page")
    for arguments in (
        ["check", str(rows), "--min-side", "8", "--workers", "0", "--scratch", str(disk)],
        ["preview", str(tmp_path / "out"), "--out", str(page)],
    ):
        assert main(arguments) == 5
        assert capsys.readouterr().err.endswith(": the disk is full\n")
    assert page.read_text() == "an older page"
    assert list(disk.iterdir()) == [page]
