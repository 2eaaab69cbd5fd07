"""Held-out scores and what stands beside them: other pictures, another model, the most frequent answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.errors import ConfigError, DataError
from vlmdata.manifest import read_manifest
from vlmdata.shards import open_folder
from vlmtrain.evaluation import describe_result, evaluate
from vlmtrain.held_out import read_eval_rows, swap_images
from vlmtrain.settings import EvalConfig


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def full_copy(full_run, tmp_path) -> Path:
    return shutil.copytree(full_run, tmp_path / "full", ignore=shutil.ignore_patterns("checkpoints"))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcd")), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_swapped_pictures_are_a_permutation_among_rows_of_as_many(rows) -> None:
    counts, labels = [count for count, _ in rows], [label for _, label in rows]
    donors = swap_images(counts, labels)
    assert sorted(donors) == list(range(len(rows)))
    assert [counts[donor] for donor in donors] == counts
    for count in set(counts):
        members = [row for row in range(len(rows)) if counts[row] == count]
        if len(members) > 1:
            assert all(donors[row] != row for row in members)
            # where no answer is more than half of them, nobody is shown his own answer's picture
            commonest = max(sum(labels[row] == label for row in members) for label in labels)
            if 2 * commonest <= len(members) and len(members) % 2 == 0:
                assert all(labels[donors[row]] != labels[row] for row in members)


def test_rows_are_questions_with_references(made, build) -> None:
    several = [made.turn("user", None, "Which?"), made.turn("assistant", "red")]
    several += [made.turn("user", "Sure?"), made.turn("assistant", "Yes", ".")]
    rows = [made.conversation(0, several, [(56, 56)]), made.row(1)]
    rows[1]["references"] = []
    rows[0]["references"] = ["Yes.", "yes"]
    first, second = read_eval_rows(open_folder(build(rows)).split("train"), limit=None, seed=0)
    assert [message["role"] for message in first.prompt] == ["user", "assistant", "user"]
    assert (first.id, first.references, first.position) == ("row-0", ["Yes.", "yes"], 0)
    # without references the last turn is the one
    assert second.references == [rows[1]["messages"][-1]["content"][0]["text"]]


def test_some_rows_are_drawn_once_by_the_seed(colours) -> None:
    split = open_folder(colours).split("train")
    drawn = read_eval_rows(split, limit=5, seed=1)
    positions = [row.position for row in drawn]
    assert positions == sorted(positions)
    assert [row.id for row in drawn] == [f"row-{position}" for position in positions]
    assert len(positions) == 5
    assert positions == [row.position for row in read_eval_rows(split, limit=5, seed=1)]
    assert positions != [row.position for row in read_eval_rows(split, limit=5, seed=2)]


def test_a_model_that_looks_is_told_from_one_that_does_not(full_copy, colours) -> None:
    result = evaluate(str(full_copy), EvalConfig(swap_images=True, metrics=("exact_match", "cer")))
    assert result["scores"]["exact_match"]["value"] == 1.0
    assert result["scores"]["cer"]["value"] == 0.0
    assert result["swapped"]["scores"]["exact_match"]["value"] == 0.0
    assert (result["rows"], result["split"], result["load_in"]) == (6, "val", "32bit")
    # the commonest answer of the training rows, on the val rows
    split = open_folder(colours)
    answers = [row["messages"][-1]["content"][0]["text"] for row in split.split("train").iterate(["messages"])]
    commonest = min(set(answers), key=lambda answer: (-answers.count(answer), answer))
    expected = [row["references"] == [commonest] for row in split.split("val").iterate(["references"])]
    assert result["majority"]["answer"] == commonest
    assert result["majority"]["scores"]["exact_match"]["value"] == pytest.approx(sum(expected) / 6)
    assert result["majority"]["scores"]["exact_match"]["value"] < 1


def test_what_is_written_beside_the_run(full_copy, colours) -> None:
    result = evaluate(str(full_copy), EvalConfig(swap_images=True))
    assert json.loads((full_copy / "eval-val.json").read_text()) == json.loads(json.dumps(result))
    assert result["data_fingerprint"] == read_manifest(colours).fingerprint
    assert (result["model"], result["data"]) == (str(full_copy), str(colours))
    assert set(result["scores"]) == {"exact_match", "cer", "wer"}
    assert {"value", "low", "high", "rows"} <= set(result["scores"]["cer"])
    rows = list(open_folder(colours).split("val").iterate(["id", "references"]))
    lines = lines_of(full_copy / "eval-val.jsonl")
    assert [(line["id"], line["references"]) for line in lines] == [(row["id"], row["references"]) for row in rows]
    assert [line["prediction"] for line in lines] == [row["references"][0] for row in rows]
    # each row says what the picture shows that it was lent
    lent = [line["swapped"] for line in lines]
    assert sorted(lent) == sorted(line["prediction"] for line in lines)
    assert all(line["swapped"] != line["prediction"] for line in lines)
    assert [line["scores"]["exact_match"] for line in lines] == [1.0] * 6


def test_another_model_answers_the_same_rows(full_copy, lora_run, colours, tmp_path) -> None:
    out = tmp_path / "compared.json"
    result = evaluate(str(full_copy), EvalConfig(compare=str(lora_run), out=out, rows=4))
    assert result["compare"]["model"] == str(lora_run)
    lines = lines_of(tmp_path / "compared.jsonl")
    assert len(lines) == 4
    wrong = [line["compared"] != line["references"][0] for line in lines]
    assert any(wrong)
    score = result["compare"]["scores"]["exact_match"]["value"]
    assert score == pytest.approx(1 - sum(wrong) / 4)
    paired = result["compare"]["paired"]["exact_match"]
    assert paired["difference"] == pytest.approx(result["scores"]["exact_match"]["value"] - score)
    assert paired["difference"] > 0
    assert not (full_copy / "eval-val.json").exists()


def test_a_model_to_compare_with_that_is_not_there_is_said_first(full_copy, monkeypatch) -> None:
    monkeypatch.setattr("vlmtrain.evaluation.load_answering_model", lambda *_, **__: pytest.fail("loaded a model"))
    with pytest.raises(ConfigError, match="nowhere: no such model folder"):
        evaluate(str(full_copy), EvalConfig(compare="nowhere"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"split": "test"}, DataError, "no split 'test'; it has 'train', 'val'"),
        ({"metrics": ("exactness",)}, ConfigError, "unknown metric 'exactness'"),
        ({"data": Path("nowhere")}, DataError, r"no manifest\.json"),
        ({"out": Path("no/such/folder/eval.json")}, ConfigError, "no such folder for the result"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(options, error, words, full_copy, monkeypatch) -> None:
    monkeypatch.setattr("vlmtrain.evaluation.load_answering_model", lambda *_, **__: pytest.fail("loaded a model"))
    with pytest.raises(error, match=words):
        evaluate(str(full_copy), EvalConfig(**options))


def test_an_adapter_alone_does_not_know_its_data(lora_run) -> None:
    with pytest.raises(ConfigError, match="--data is missing"):
        evaluate(str(lora_run / "adapter"), EvalConfig())


def test_the_table_for_the_eye(full_copy, lora_run, tmp_path) -> None:
    config = EvalConfig(
        swap_images=True, compare=str(lora_run), metrics=("exact_match", "cer"), out=tmp_path / "e.json"
    )
    result = evaluate(str(full_copy), config)
    head, names, *lines = describe_result(result).splitlines()
    assert head.startswith("val: 6 rows of ")
    assert names.split() == ["exact_match", "cer"]
    assert len(lines) == 4
    assert "1.000 [1.000, 1.000]" in lines[0]
    assert lines[1].startswith("the same, pictures swapped")
    assert "0.000 [0.000, 0.000]" in lines[1]
    assert str(lora_run)[-20:] in lines[2]
    assert lines[3].startswith(f"always {result['majority']['answer']!r}")
