"""Own pictures against those of other rows: a model that looks, one that does not, and a set that is out of step."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_rows import make_conversation, turn, write_folder
from vlmdata.errors import DataError
from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.alignment import measure_alignment
from vlmtrain.config import DataConfig
from vlmtrain.inference import load_answering_model
from vlmtrain.preflight import check_split


def measure(model_or_run: Path, folder: Path, rows: int = 24, *, blind: bool = False):
    model = load_answering_model(str(model_or_run), backend="transformers")
    if blind:
        for name, parameter in model.loaded.model.named_parameters():
            if "visual.merger" in name:
                parameter.data.zero_()
    split = open_folder(folder).split("train")
    checked = check_split(split, DataConfig(data=folder), model.chat, FAMILIES["qwen2.5-vl"])
    return measure_alignment(checked, model, rows, batch_size=4)


def test_a_model_that_looks_tells_a_set_that_is_out_of_step(full_run, build, tmp_path) -> None:
    names = {"red": "green", "green": "blue", "blue": "white", "white": "red"}

    def rows(answer_of) -> list:
        turns = ["red", "green", "blue", "white"] * 3
        question = turn("user", None, "Which colour is this?")
        return [
            make_conversation(i, [question, turn("assistant", answer_of(each))], [(56, 56)], each)
            for i, each in enumerate(turns)
        ]

    found = measure(full_run, write_folder(tmp_path / "right", {"train": rows(str)}))
    assert found.rows == 12
    assert found.own < found.swapped
    assert found.low > 0
    assert found.describe().endswith("texts and pictures belong together")
    shifted = measure(full_run, write_folder(tmp_path / "shifted", {"train": rows(names.get)}))
    assert shifted.own > found.own
    assert shifted.low <= 0
    assert "may be out of step" in shifted.describe()


def test_a_model_that_does_not_look_sees_no_difference(tiny_qwen, build) -> None:
    question = turn("user", None, "Which colour is this?")
    names = ["red", "green", "blue", "white"] * 2
    rows = [make_conversation(i, [question, turn("assistant", name)], [(56, 56)], name) for i, name in enumerate(names)]
    found = measure(tiny_qwen, build(rows), rows=8, blind=True)
    assert found.rows == 8
    assert found.swapped == pytest.approx(found.own, abs=1e-5)
    assert "this model sees no difference" in found.describe()


def test_rows_without_pictures_cannot_be_compared(tiny_qwen, build) -> None:
    row = make_conversation(0, [turn("user", "2+2?"), turn("assistant", "4")])
    with pytest.raises(DataError, match="--align needs at least two rows"):
        measure(tiny_qwen, build([row, row]))
