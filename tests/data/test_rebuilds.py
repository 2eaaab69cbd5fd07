"""Building again: after a change only what changed is done, after kill -9 at any moment nothing that was finished."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, build_folder
from vlmdata.build import BuildReport
from vlmdata.stage.partitions import PARTITION_ROWS
from vlmdata.stage.staged import StagedFiles, read_marker

KILLS = 20


def write_rows(path: Path, rows: int, word: str = "number") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows([f"What is {word} {i}?", str(i)] for i in range(rows))
    return path


def build(out: Path, *inputs: Path, **options: object) -> BuildReport:
    values = {"inputs": tuple(map(str, inputs)), "out": out, "workers": 0, "split": "val=0.1", **options}
    return build_folder(BuildConfig.from_values(values))


def snapshot(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and ".stage" not in path.parts)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture
def equal_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first partitions are as large as the later ones."""
    monkeypatch.setattr("vlmdata.stage.partitions.FIRST_PARTITION_ROWS", PARTITION_ROWS)


@pytest.fixture
def inputs(tmp_path: Path, equal_partitions: None) -> tuple[Path, Path]:
    rows = 2 * PARTITION_ROWS + 5
    return write_rows(tmp_path / "one.csv", rows), write_rows(tmp_path / "two.csv", rows, "figure")


def test_rows_that_are_added_cost_their_partition(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    first = build(tmp_path / "out", *inputs)
    assert (first.partitions, first.partitions_reused) == (6, 0)
    write_rows(inputs[0], 3 * PARTITION_ROWS)
    again = build(tmp_path / "out", *inputs)
    assert (again.partitions, again.partitions_reused) == (6, 5)
    assert again.manifest.counts.read == 5 * PARTITION_ROWS + 5
    build(tmp_path / "anew", *inputs)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "anew")


def test_first_partitions_are_small_and_stay_when_rows_are_added(tmp_path: Path) -> None:
    first = build(tmp_path / "out", write_rows(tmp_path / "rows.csv", 3000))
    markers = sorted((tmp_path / "out" / ".stage").glob("part-*.json"))
    sizes = [json.loads(marker.read_text())["read"] for marker in markers]
    assert (len(sizes), sum(sizes)) == (first.partitions, 3000)
    assert sizes[:3] == [16, 16, 16]
    assert 64 < max(sizes) < 3000 / 32
    again = build(tmp_path / "out", write_rows(tmp_path / "rows.csv", 3100))
    assert again.partitions_reused == first.partitions - 1


def test_an_image_that_changed_costs_its_partition(tmp_path: Path, equal_partitions: None) -> None:
    (tmp_path / "images").mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each).resize((96, 96)) for each in levels]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        for i in range(PARTITION_ROWS + 1):
            writer.writerow([f"images/{min(i, PARTITION_ROWS) // PARTITION_ROWS}.png", f"Which {i}?", "this"])
    for number in (0, 1):
        pictures[number].save(tmp_path / "images" / f"{number}.png")
    build(tmp_path / "out", tmp_path / "rows.csv", min_side=32, split=None)
    pictures[2].save(tmp_path / "images" / "1.png")
    os.utime(tmp_path / "images" / "1.png", ns=(1, 1))
    again = build(tmp_path / "out", tmp_path / "rows.csv", min_side=32, split=None)
    assert (again.partitions, again.partitions_reused) == (2, 1)
    build(tmp_path / "anew", tmp_path / "rows.csv", min_side=32, split=None)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "anew")


def test_options_about_whole_sets_cost_no_partition(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    build(tmp_path / "out", *inputs)
    again = build(tmp_path / "out", *inputs, split="val=0.2", dedup="exact", overwrite=True)
    assert (again.partitions, again.partitions_reused) == (6, 6)
    build(tmp_path / "anew", *inputs, split="val=0.2", dedup="exact")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "anew")
    prepared = build(tmp_path / "out", *inputs, max_side=500, overwrite=True)
    assert prepared.partitions_reused == 0


def test_the_stage_may_be_deleted_or_not_kept_at_all(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = build(out, *inputs)
    assert "keeps" in report.remark
    assert "--no-keep-stage" in report.remark
    kept = {path.name for path in (out / ".stage").iterdir()}
    names = {path.name for n in (0, 1, 2, 10_000_000, 10_000_001, 10_000_002) for path in StagedFiles(out, n).paths}
    assert kept == names | {"inputs.arrow", "lock"}
    write_rows(inputs[0], 10)
    build(out, *inputs)
    assert len(list((out / ".stage").glob("part-*.json"))) == 4
    write_rows(inputs[0], 20)
    again = build(out, *inputs, keep_stage=False)
    assert again.partitions_reused == 3
    assert {path.name for path in (out / ".stage").iterdir()} == {"inputs.arrow", "lock"}
    assert build(out, *inputs).was_unchanged


def start(rows: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlmdata", "build", str(rows), "--out", str(out), "--workers", "2"]
    options = ["--min-side", "32", "--split", "val=0.1", "--shard-size", "200kB"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def finished_partitions(out: Path) -> set[int]:
    numbers = (int(path.name[5:14]) for path in (out / ".stage").glob("part-*.json"))
    return {number for number in numbers if read_marker(StagedFiles(out / ".stage", number)) is not None}


@pytest.mark.slow  # twenty builds that are killed and twenty that go on, each of some seconds
def test_kill_at_any_moment_costs_nothing_that_was_finished(tmp_path: Path) -> None:
    rng = random.Random(4)
    (tmp_path / "images").mkdir()
    levels = np.random.default_rng(4).integers(0, 256, (600, 12, 12, 3), dtype=np.uint8)
    for i, each in enumerate(levels):
        Image.fromarray(each).resize((160, 120), Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{i}.png")
    rows = tmp_path / "rows.csv"
    with rows.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerows([f"images/{i % 600}.png", f"Which {i // 600}?", f"this {i}"] for i in range(9600))
    began = time.monotonic()
    finish(start(rows, tmp_path / "whole"))
    seconds = time.monotonic() - began
    whole = snapshot(tmp_path / "whole")
    finished = redone = 0
    moments = []
    for kill in range(KILLS):
        out = tmp_path / f"out-{kill}"
        process = start(rows, out)
        moment = rng.uniform(0.1, 1.0) * seconds
        moments.append(f"{moment:.1f}")
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        before = finished_partitions(out)
        # a folder that is whole already is not built again
        stamps = {number: StagedFiles(out / ".stage", number).rows.stat().st_mtime_ns for number in before}
        finish(start(rows, out))
        assert snapshot(out) == whole, f"killed after {moment:.2f} s"
        finished += len(before)
        redone += sum(StagedFiles(out / ".stage", n).rows.stat().st_mtime_ns != stamp for n, stamp in stamps.items())
        shutil.rmtree(out)
    print(f"killed after {', '.join(moments)} of {seconds:.1f} s: {redone} of {finished} finished partitions redone")
    assert finished > KILLS
    assert redone < 0.1 * finished
