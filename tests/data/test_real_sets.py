"""Golden counts over sets that nobody of this project wrote: what is detected, kept and rejected, and why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vlmdata.build_config import BuildConfig
from vlmdata.check import check_inputs
from vlmdata.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
FORMATS = SHARED / "formats"
LLAVA = FORMATS / "llava" / "playground" / "data"

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not FORMATS.is_dir(), reason="../shared/data is absent"),
]


def check(*inputs: Path, **options) -> tuple[list[str], int, int, dict[str, int]]:
    """What was detected, and the rows that were read, kept and rejected for each reason."""
    values = {"inputs": tuple(map(str, inputs)), "out": Path("unused"), "workers": 0, "dedup": "none"}
    notes: list[str] = []
    counts = check_inputs(
        BuildConfig.from_values({**values, "download": False, "max_reject_rate": 1.0, **options}),
        rejected=None,
        on_partition=lambda _: None,
        on_note=notes.append,
    )
    return [note.split("; ")[1].split(" (")[0] for note in notes], counts.read, counts.kept, dict(counts.rejected)


@pytest.mark.parametrize(
    ("file", "format", "read", "kept", "rejected"),
    [
        ("ms-swift/alpaca.jsonl", "alpaca", 3, 3, {}),
        ("ms-swift/chatml.jsonl", "messages", 3, 3, {}),
        ("ms-swift/conversations.jsonl", "sharegpt", 3, 3, {}),
        ("ms-swift/sharegpt.jsonl", "sharegpt", 3, 3, {}),
        ("ms-swift/swift_single.jsonl", "swift", 3, 3, {}),
        ("ms-swift/swift_multi.jsonl", "swift", 3, 3, {}),
        ("ms-swift/multi_modal_1.jsonl", "swift", 3, 1, {"image_not_downloaded": 2}),
        ("llamafactory-demo/mllm_demo.json", "llamafactory", 6, 6, {}),
    ],
)
def test_sets_of_other_tools(file: str, format: str, read: int, kept: int, rejected: dict[str, int]) -> None:
    assert check(FORMATS / file) == ([format], read, kept, rejected)


@pytest.mark.parametrize(
    ("file", "rows", "reason"),
    [
        ("ms-swift/multi_modal_2.jsonl", 3, "image_not_downloaded"),
        ("ms-swift/multi_modal_3.jsonl", 3, "image_not_downloaded"),
        ("qwen3-vl-demo/single_images.json", 3, "image_missing"),
        ("llava/playground/data/coco2014_val_gpt4_qa_30x3.jsonl", 90, "image_missing"),
    ],
)
def test_sets_whose_images_are_elsewhere(file: str, rows: int, reason: str) -> None:
    with pytest.raises(DataError, match=rf"none of {rows} rows is left to keep \({reason} {rows}\)"):
        check(FORMATS / file)


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("ms-swift/swift_pre.jsonl", ConfigError, "texts for pretraining, without questions"),
        ("llamafactory-demo/dataset_info.json", DataError, "describes sets and holds no rows"),
        (LLAVA / "coco2014_val_qa_eval/qa90_questions.jsonl", ConfigError, "questions without answers"),
        (LLAVA / "coco2014_val_qa_eval/qa90_gpt4_answer.jsonl", ConfigError, "answers without questions"),
        *((path, ConfigError, "files of this kind are not read") for path in sorted(LLAVA.rglob("*.txt"))),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_files_that_are_no_training_sets(file: str | Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(FORMATS / file)


def test_every_sample_file_is_in_one_of_these_tests() -> None:
    tested = {
        mark
        for test in (
            test_sets_of_other_tools,
            test_sets_whose_images_are_elsewhere,
            test_files_that_are_no_training_sets,
        )
        for marker in test.pytestmark
        for mark in (str(FORMATS / case[0]) for case in marker.args[1])
    }
    images = {".jpg", ".png"}
    assert {str(path) for path in FORMATS.rglob("*.*") if path.is_file() and path.suffix not in images} == tested


def test_images_found_under_another_root(tmp_path: Path) -> None:
    shutil.copytree(FORMATS / "qwen3-vl-demo" / "images", tmp_path / "demo" / "images")
    demo = FORMATS / "qwen3-vl-demo" / "single_images.json"
    assert check(demo, image_root=tmp_path) == (["llava"], 3, 3, {})


def test_sets_of_several_formats_in_one_build() -> None:
    formats, read, kept, rejected = check(FORMATS / "ms-swift" / "alpaca.jsonl", FORMATS / "llamafactory-demo")
    assert (formats, read, kept, rejected) == (["alpaca", "llamafactory"], 9, 9, {})


@pytest.mark.parametrize(("images", "kept"), [(("0",), 160), (("0", "1"), 160), (("2",), 0)])
def test_nlvr_by_templates(images: tuple[str, ...], kept: int) -> None:
    options = {
        "image": tuple(f"images/dev-{{identifier}}-{number}.png" for number in images),
        "instruction": "Is this true? {sentence}",
        "response": "label",
    }
    source = SHARED / "nlvr" / "dev.subset.jsonl"
    if kept:
        assert check(source, **options) == (["columns"], 160, kept, {})
    else:
        with pytest.raises(DataError, match="image_missing 160"):
            check(source, **options)


def test_column_options_are_for_the_inputs_that_they_fit() -> None:
    options = {
        "image": ("images/dev-{identifier}-0.png",),
        "instruction": "Is this true? {sentence}",
        "response": "label",
    }
    nlvr, demo = SHARED / "nlvr" / "dev.subset.jsonl", FORMATS / "llamafactory-demo" / "mllm_demo.json"
    assert check(nlvr, demo, **options) == (["columns", "llamafactory"], 166, 166, {})
    with pytest.raises(ConfigError, match="no column 'sentence'"):
        check(demo, **options)
