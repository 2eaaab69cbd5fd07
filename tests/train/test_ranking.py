"""Rows by the loss of their own answers: wrong labels first, and the losses those of the model."""

from __future__ import annotations

import json

import pytest
import torch

from made_rows import make_row, turn
from vlmdata.errors import ConfigError
from vlmdata.shards import open_folder
from vlmtrain.cli import main
from vlmtrain.collator import VisionCollator
from vlmtrain.inference import load_answering_model
from vlmtrain.ranking import rank_rows, row_losses
from vlmtrain.rows import open_rows
from vlmtrain.settings import EvalConfig


def test_losses_are_those_of_the_model(lora_run, colours) -> None:
    model = load_answering_model(str(lora_run))
    rows = open_rows(open_folder(colours).split("train")).select(range(6))
    found = row_losses(model, rows, batch_size=6)
    collate = VisionCollator(model.chat, dtype=torch.float32)
    for row, loss in zip(rows, found, strict=True):
        batch = collate([row])
        with torch.no_grad():
            expected = model.loaded.model(**batch).loss
        assert loss.loss == pytest.approx(float(expected), rel=1e-4)
        assert loss.tokens == int((batch["labels"][:, 1:] >= 0).sum())
        assert loss.worst_token_loss >= loss.loss
    alone = row_losses(model, rows, batch_size=1)
    assert [loss.loss for loss in alone] == pytest.approx([loss.loss for loss in found], rel=1e-4)


@pytest.fixture
def planted(build):
    """Pictures with three wrong answers among twenty, and the ids of these."""
    rows = [make_row(i) for i in range(200, 220)]
    wrong = {rows[i]["id"]: rows[i] for i in (4, 11, 17)}
    for row in wrong.values():
        own = row["references"][0]
        answer = "green" if own != "green" else "blue"
        row["messages"][-1] = turn("assistant", answer)
        row["references"] = [answer]
    return build(rows), wrong


def test_wrong_labels_come_first(planted, full_run, tmp_path, capsys) -> None:
    data, wrong = planted
    out = tmp_path / "ranking.jsonl"
    main(["eval", str(full_run), "--data", str(data), "--split", "train", "--rank", "--top", "4", "--out",
          str(out)])  # fmt: skip
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["rank"] for line in lines] == list(range(1, 21))
    assert {line["id"] for line in lines[:3]} == set(wrong)
    assert lines[2]["loss"] > 4 * lines[3]["loss"]
    for line in lines[:3]:
        assert line["answer"] == wrong[line["id"]]["references"][0]
        assert line["answer"].startswith(line["worst_token"])
        assert line["source"] == wrong[line["id"]]["source"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith("the 4 of 20 rows whose own answers the model finds least likely:")
    assert [line.split()[0] for line in shown[3:]] == ["1", "2", "3", "4"]
    assert lines[0]["id"] in shown[3]


def test_a_ranking_goes_beside_the_run(lora_run, tmp_path) -> None:
    ranked = rank_rows(str(lora_run), EvalConfig(rank=True, rows=3))
    written = [json.loads(line) for line in (lora_run / "rank-val.jsonl").read_text().splitlines()]
    assert [(row.rank, row.id, row.loss) for row in ranked] == [(w["rank"], w["id"], w["loss"]) for w in written]
    assert len(ranked) == 3
    with pytest.raises(ConfigError, match="--rank asks for no answers"):
        EvalConfig(rank=True, swap_images=True)
