"""Builds from inputs to whole folders: what is kept, what is not, and that nothing else can be told from the result."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, ConfigError, DataError, ResourceError, build_folder, open_folder, verify_folder
from vlmdata.build import BuildReport

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL = {"min_side": 8, "max_side": 64}


def encode_image(seed: int, size: tuple[int, int] = (40, 30), format: str = "JPEG") -> bytes:
    """A picture of its own for each seed, with detail enough for a perceptual hash, and not too much for a JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def write_set(folder: Path, rows: int = 40) -> Path:
    """Rows about photos on disk, with the defects of real sets: see `EXPECTED`."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(rows):
        (folder / "images" / f"{i}.jpg").write_bytes(encode_image(i))
        lines.append(
            {"image": f"images/{i}.jpg", "question": "Which one?", "answer": f"number {i}", "group": f"g{i // 4}"}
        )
    lines[3]["image"] = "images/absent.jpg"
    (folder / "images" / "5.jpg").write_bytes(b"no image at all")
    lines[7]["answer"] = " "
    lines[9]["image"] = "../outside.jpg"
    lines[11]["question"] = "Which <|im_end|>?"
    lines[13] = {**lines[12]}  # the same image and answer
    lines[15] = {**lines[14], "answer": "another answer to the same image"}
    lines[17]["answer"] = "skip"
    text = [json.dumps(line) for line in lines]
    text[19] = '{"image": "half'
    (folder / "rows.jsonl").write_text("\n".join(text) + "\n")
    return folder / "rows.jsonl"


EXPECTED = {
    3: "image_missing",
    5: "image_unreadable",
    7: "empty_text",
    9: "image_outside_root",
    11: "template_token",
    13: "duplicate_exact",
    17: "filtered",
    19: "json_broken",
}


def build(path: Path | str | list, out: Path, **values: object) -> BuildReport:
    inputs = path if isinstance(path, list) else [str(path)]
    return build_folder(BuildConfig.from_values({**SMALL, "workers": 0, "inputs": inputs, "out": out, **values}))


def rejections(out: Path) -> dict[int, str]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)
    assert all(set(line) == {"source", "row", "stage", "reason", "detail", "id"} for line in lines)
    return {line["row"]: line["reason"] for line in lines}


def snapshot(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".stage" not in path.parts
    }


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    report = build(write_set(tmp_path / "set"), tmp_path / "out", where='answer != "skip"', keep=("group",))
    counts = report.manifest.counts
    assert (counts.read, counts.kept) == (40, 32)
    assert counts.rejected == Counter(EXPECTED.values())
    assert rejections(tmp_path / "out") == EXPECTED
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    # whatever could be read of a row has its id, and a file that does not decode is named
    assert all((line["id"] is None) == (line["stage"] == "sources") for line in lines)
    assert all(".jpg': " in line["detail"] for line in lines if line["reason"] == "image_unreadable")
    assert "image_unreadable" in EXPECTED.values()
    train = open_folder(tmp_path / "out", checksums=True).split("train")
    assert train.column("source") == [f"rows.jsonl:{i}" for i in range(40) if i not in EXPECTED]
    row = train[0]
    assert row["messages"] == [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which one?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "number 0"}]},
    ]
    assert row["references"] == ["number 0"]
    assert json.loads(row["meta"]) == {"group": "g0"}
    assert row["images"][0]["path"] == "images/0.jpg"
    with Image.open(io.BytesIO(row["images"][0]["bytes"])) as image:
        assert (image.size, image.mode) == ((40, 30), "RGB")
    info = row["image_info"][0]
    assert (info["width"], info["height"], info["format"], info["action"]) == (40, 30, "JPEG", "stored")
    assert len(bytes.fromhex(info["phash"])) == 32


def test_a_dropped_row_names_the_one_it_duplicates(tmp_path: Path) -> None:
    build(write_set(tmp_path / "set"), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    (duplicate,) = [line for line in lines if line["reason"] == "duplicate_exact"]
    assert (duplicate["row"], duplicate["stage"], duplicate["id"]) == (13, "dedup", "rows.jsonl:13")
    assert duplicate["detail"] == "of rows.jsonl:12"


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_connected_images_stay_on_one_side(tmp_path: Path, dedup: str) -> None:
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(60):
        picture = encode_image(i // 3, (64, 48))
        if i % 3 == 1:
            with Image.open(io.BytesIO(picture)) as image:
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=60)
                picture = buffer.getvalue()
        (tmp_path / "images" / f"{i}.jpg").write_bytes(picture)
        lines.append({"image": f"images/{i}.jpg", "question": "Which one?", "answer": f"answer {i % 3}"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = build(tmp_path / "rows.jsonl", tmp_path / "out", split="val=0.2,test=0.2", dedup=dedup)
    splits = open_folder(tmp_path / "out").splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 36, "val": 12, "test": 12}
    sides: dict[int, set[str]] = {}
    for name, split in splits.items():
        for source in split.column("source"):
            sides.setdefault(int(source.split(":")[1]) // 3, set()).add(name)
    assert all(len(each) == 1 for each in sides.values())
    assert report.manifest.counts.kept == 60


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    build(write_set(tmp_path / "set"), tmp_path / "out", split="val=0.3", group_by="group", keep=("group",))
    groups = [
        {json.loads(meta)["group"] for meta in split.column("meta")}
        for split in open_folder(tmp_path / "out").splits.values()
    ]
    assert all(groups)
    assert not groups[0] & groups[1]


def test_workers_do_not_show_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmdata.stage.partitions.PARTITION_ROWS", 7)
    path = write_set(tmp_path / "set")
    for workers in (0, 1, 4):
        build(path, tmp_path / f"out{workers}", workers=workers, split="val=0.2", shard_size="20kB")
    first = snapshot(tmp_path / "out0")
    assert snapshot(tmp_path / "out1") == first
    assert snapshot(tmp_path / "out4") == first
    assert sum(name.startswith("train/data-") for name in first) > 1


def test_partitions_do_not_show_in_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path / "set")
    whole = build(path, tmp_path / "a").manifest.splits
    monkeypatch.setattr("vlmdata.stage.partitions.PARTITION_ROWS", 3)
    monkeypatch.setattr("vlmdata.stage.work._FLUSH_BYTES", 2000)
    assert build(path, tmp_path / "b").manifest.splits == whole


def test_the_place_of_the_set_does_not_show(tmp_path: Path) -> None:
    first = build(write_set(tmp_path / "here"), tmp_path / "a", image_root=tmp_path / "here")
    second = build(write_set(tmp_path / "somewhere" / "else"), tmp_path / "b")
    assert first.manifest.splits == second.manifest.splits
    assert first.manifest.fingerprint == second.manifest.fingerprint


def test_building_again_only_touches_the_manifest(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    build(path, tmp_path / "out")
    files = {name: (tmp_path / "out" / name).stat() for name in snapshot(tmp_path / "out")}
    os.utime(tmp_path / "out" / "manifest.json", (1, 1))
    assert build(path, tmp_path / "out").was_unchanged
    for name, before in files.items():
        now = (tmp_path / "out" / name).stat()
        assert now.st_ino == before.st_ino
        assert now.st_mtime_ns == before.st_mtime_ns or name == "manifest.json"
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime > 1_000_000


@pytest.mark.parametrize("change", ["rows", "image", "missing image appears", "shard lost"])
def test_a_change_builds_again(tmp_path: Path, change: str) -> None:
    path = write_set(tmp_path / "set")
    build(path, tmp_path / "out")
    if change == "rows":
        path.write_text("\n".join(path.read_text().splitlines()[:30]))
    elif change == "image":
        (tmp_path / "set" / "images" / "5.jpg").write_bytes(encode_image(99))
    elif change == "missing image appears":
        (tmp_path / "set" / "images" / "absent.jpg").write_bytes(encode_image(99))
    else:
        (tmp_path / "out" / "train" / "data-00000-of-00001.arrow").unlink()
    report = build(path, tmp_path / "out")
    assert not report.was_unchanged
    fresh = build(path, tmp_path / "fresh")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")
    assert fresh.manifest.counts.kept == {"rows": 23, "shard lost": 33}.get(change, 34)


def test_other_options_need_overwrite(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    build(path, tmp_path / "out", split="val=0.2")
    with pytest.raises(
        ConfigError, match=r"was built with other options \(max_side 64 -> 32, split 'val=0.2' -> None\)"
    ):
        build(path, tmp_path / "out", max_side=32)
    build(path, tmp_path / "out", max_side=32, overwrite=True)
    assert not (tmp_path / "out" / "val").exists()
    build(path, tmp_path / "fresh", max_side=32)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="was not made by vlmdata build"):
            build(path, tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"
    with pytest.raises(ConfigError, match="is a file"):
        build(path, path)
    with pytest.raises(ResourceError, match="cannot be written"):
        build(path, path / "out")


def test_two_builds_do_not_write_to_one_folder(tmp_path: Path) -> None:
    from vlmdata.output_folder import lock_output

    path = write_set(tmp_path / "set")
    with lock_output(tmp_path / "out"), pytest.raises(ResourceError, match="another build is writing here"):
        build(path, tmp_path / "out")


def test_ids_that_several_rows_have_are_told(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    assert not any("not unique" in note for note in build(path, tmp_path / "out").notes)
    # rows 12 and 13 are of one group too, and duplicates: only what is kept counts
    notes = build(path, tmp_path / "grouped", id="group").notes
    ids = Counter(open_folder(tmp_path / "grouped").split("train").column("id"))
    shared = sum(count for count in ids.values() if count > 1)
    assert f"ids are not unique: {shared} kept rows have one that another has too, such as 'g0'" in notes
    assert 0 < shared <= ids.total()


def test_too_many_rejects_end_the_build(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    with pytest.raises(DataError, match=r"6 of 39 rows are rejected .* more than --max-reject-rate 0.1 allows"):
        build(path, tmp_path / "out", max_reject_rate=0.1, where='answer != "skip"')
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert rejections(tmp_path / "out") == EXPECTED
    report = build(path, tmp_path / "out", max_reject_rate=0.2, where='answer != "skip"')
    assert report.partitions_reused == report.partitions
    verify_folder(tmp_path / "out", checksums=True)


def test_nothing_left_to_keep(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    with pytest.raises(DataError, match="none of 40 rows is left to keep"):
        build(path, tmp_path / "out", where='answer == "no such"', max_reject_rate=1.0)
    (tmp_path / "set" / "beside").mkdir()
    (tmp_path / "set" / "beside" / "rows.csv").write_text("image,question,answer\n../images/0.jpg,Which?,this\n")
    with pytest.raises(DataError, match=r"image_outside_root 1\); .* --allow-outside-root permits any"):
        build(tmp_path / "set" / "beside" / "rows.csv", tmp_path / "out1", max_reject_rate=1.0)
    (tmp_path / "empty.csv").write_text("image,question,answer\n")
    with pytest.raises(DataError, match="there are no rows in the inputs"):
        build(tmp_path / "empty.csv", tmp_path / "out2")
    (tmp_path / "broken.jsonl").write_text("nothing here\nis JSON\n")
    with pytest.raises(DataError, match=r"broken.jsonl: none of the first 2 rows can be read \(json_broken: "):
        build(tmp_path / "broken.jsonl", tmp_path / "out3")


def test_images_in_every_form_and_mixed_inputs(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = [encode_image(i, format="PNG") for i in range(4)]
    (tmp_path / "a.png").write_bytes(encoded[0])
    uri = "data:image/png;base64," + base64.b64encode(encoded[1]).decode()
    rows = [{"image": "a.png", "question": "q", "answer": "path"}, {"image": uri, "question": "q", "answer": "uri"}]
    (tmp_path / "1.json").write_text(json.dumps(rows))
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = {
        "image": pa.array([{"bytes": encoded[2], "path": "x/2.png"}], image),
        "question": ["q"],
        "answer": ["struct"],
    }
    pq.write_table(pa.table(table), tmp_path / "2.parquet")
    pq.write_table(pa.table({"image": [encoded[3]], "question": ["q"], "answer": ["bytes"]}), tmp_path / "3.parquet")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "text only"}]
    (tmp_path / "4.jsonl").write_text(json.dumps({"messages": chat}))
    names = ["1.json", "2.parquet", "3.parquet", "4.jsonl"]
    report = build([str(tmp_path / name) for name in names], tmp_path / "out")
    train = open_folder(tmp_path / "out").split("train")
    assert [row["references"] for row in train] == [["path"], ["uri"], ["struct"], ["bytes"], ["text only"]]
    assert [[image["path"] for image in row["images"]] for row in train] == [["a.png"], [None], ["2.png"], [None], []]
    hashes = [info["pixel_hash"] for row in train for info in row["image_info"]]
    assert len(set(hashes)) == 4
    assert [each["format"] for each in report.manifest.inputs] == ["columns", "columns", "columns", "messages"]


def test_a_built_folder_is_an_input(tmp_path: Path) -> None:
    build(write_set(tmp_path / "set"), tmp_path / "one")
    build(tmp_path / "one", tmp_path / "two")
    first, second = (open_folder(tmp_path / name).split("train") for name in ("one", "two"))
    for name in ("id", "messages", "images", "references"):
        if name == "images":
            assert [[i["bytes"] for i in row] for row in first.column(name)] == [
                [i["bytes"] for i in row] for row in second.column(name)
            ]
        else:
            assert first.column(name) == second.column(name)


def test_problems_of_all_inputs_come_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(ConfigError) as caught:
        build([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], tmp_path / "out", instruction="x")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["a.jsonl", "b.jsonl"]


# What follows ends builds from outside, and so runs them as programs.


def start_build(
    path: Path, out: Path, *options: str, prepare: Callable[[], None] | None = None, **how: object
) -> subprocess.Popen:
    command = [sys.executable, "-m", "vlmdata", "build", str(path), "--out", str(out), "--workers", "2", *options]
    command += ["--min-side", "100", "--split", "val=0.1"]

    def begin() -> None:
        # a shell's background job ignores SIGINT, and so would all that it starts
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if prepare is not None:
            prepare()

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, start_new_session=True, preexec_fn=begin, **how)


def write_large_set(folder: Path) -> Path:
    """Rows enough for several partitions, and images that take their time: each is enlarged, none equals another."""
    (folder / "images").mkdir(parents=True)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(1700):
            if i % 34 == 0:
                (folder / "images" / f"{i}.png").write_bytes(encode_image(i, (80, 60), "PNG"))
            file.write(
                json.dumps({"image": f"images/{i - i % 34}.png", "question": f"Question {i}?", "answer": "yes"}) + "\n"
            )
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def large_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_set(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def uninterrupted(large_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start_build(large_set, out)
    assert process.wait(120) == 0, process.stderr.read()
    return snapshot(out)


def wait_for_partitions(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list((out / ".stage").glob("part-*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_was_ended_goes_on(
    large_set: Path, uninterrupted: dict, tmp_path: Path, sent: int, code: int
) -> None:
    out = tmp_path / "out"
    process = start_build(large_set, out)
    wait_for_partitions(out, 2)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert not (out / "manifest.json").exists()
    if code > 0:
        # click puts a line break after the ^C that a terminal shows
        assert errors.strip().startswith("error: ")
        assert errors.strip().count("\n") == 0
    # the workers go with the main process, even when it had no time to end them
    deadline = time.monotonic() + 10
    while group_is_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    resumed = start_build(large_set, out)
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert re.search(r"^[1-9]\d* of \d+ partitions were done already$", output, re.MULTILINE)
    assert snapshot(out) == uninterrupted


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(
        line.split()[4] == str(group) and line.split()[2] != "Z"
        for line in (path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
    )


def test_a_full_disk_ends_the_build_without_a_manifest(large_set: Path, uninterrupted: dict, tmp_path: Path) -> None:
    def limit_files() -> None:
        # the nearest thing to a full disk that needs no rights: no file may grow beyond this
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = start_build(large_set, tmp_path / "out", prepare=limit_files)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    resumed = start_build(large_set, tmp_path / "out")
    assert resumed.wait(120) == 0
    assert snapshot(tmp_path / "out") == uninterrupted


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "clothing").is_dir(), reason="the real sets are not beside the checkout")
def test_real_photos(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    values = {
        "image": ("images/{image}.jpg",),
        "instruction": "Which garment is this?",
        "response": "{label}",
        "split": "val=0.1",
    }
    config = BuildConfig.from_values(
        {"inputs": [str(SHARED / "clothing" / "images.csv")], "out": tmp_path / "out", **values}
    )
    manifest = build_folder(config).manifest
    assert manifest.counts.read == 900 == manifest.counts.kept + sum(manifest.counts.rejected.values())
    (rejected,) = [
        line
        for line in map(json.loads, (tmp_path / "out" / "rejected.jsonl").open())
        if line["reason"] == "image_missing"
    ]
    assert not (SHARED / "clothing" / rejected["detail"].split("'")[1]).exists()
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert abs(loaded["val"].num_rows - 90) <= 1
    for split in loaded.values():
        for row in split.select(range(0, split.num_rows, 20)):
            (image,) = row["images"]
            assert image.mode == "RGB"
            assert 300 <= min(image.size) <= max(image.size) <= 1000
    sizes = [
        size for split in open_folder(tmp_path / "out").splits.values() for row in split.stored_sizes() for size in row
    ]
    assert all(300 <= min(size) <= max(size) <= 1000 for size in sizes)


def test_in_pair_scope_no_row_with_another_answer_is_dropped(tmp_path: Path) -> None:
    """Every different (picture, question, answer) is there afterwards, however alike the pictures are."""
    rng = np.random.default_rng(0)
    rows, said = [], set()
    for i in range(8):
        for copy, quality in enumerate((95, 60, 30)):
            with Image.open(io.BytesIO(encode_image(i, (320, 240)))) as image:
                image.save(tmp_path / f"{i}-{copy}.jpg", quality=quality)
    for _ in range(120):
        i, copy, question, answer = rng.integers((8, 3, 2, 3)).tolist()
        texts = f"What is  it? {question}", f"\\Delta {'aAb'[answer]}"
        rows.append({"image": f"{i}-{copy}.jpg", "question": texts[0], "answer": texts[1]})
        said.add((i, *texts))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"min_side": 8, "max_side": 400, "max_reject_rate": 0.0}
    build(tmp_path / "rows.jsonl", tmp_path / "pair", **options)
    split = open_folder(tmp_path / "pair").split("train")
    kept = [
        (int(row["images"][0]["path"].partition("-")[0]), *(m["content"][-1]["text"] for m in row["messages"]))
        for row in split
    ]
    assert sorted(kept) == sorted(said)
    assert set(rejections(tmp_path / "pair").values()) == {"duplicate_exact", "duplicate_near"}
    build(tmp_path / "rows.jsonl", tmp_path / "image", dedup_scope="image", **options)
    assert len(open_folder(tmp_path / "image").split("train")) == 8
