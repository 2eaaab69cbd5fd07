"""Held-out scores and what stands beside them: other pictures, another model, the most frequent answer."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from made_rows import make_conversation, make_row, turn
from vlmdata.errors import ConfigError, DataError, MissingDependencyError
from vlmdata.manifest import read_manifest
from vlmdata.shards import open_folder
from vlmtrain.evaluation import evaluate
from vlmtrain.held_out import read_eval_rows, swap_images
from vlmtrain.metrics import are_labels
from vlmtrain.score_table import describe_result
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


def test_rows_are_questions_with_references(build) -> None:
    several = [turn("user", None, "Which?"), turn("assistant", "red")]
    several += [turn("user", "Sure?"), turn("assistant", "Yes", ".")]
    rows = [make_conversation(0, several, [(56, 56)]), make_row(1)]
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


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.html"])
def test_the_scores_take_no_other_files_place(name) -> None:
    with pytest.raises(ConfigError, match=r"name a \.json file for the scores"):
        EvalConfig(out=Path(name))
    assert EvalConfig(out=Path(name), rank=True)


def test_an_adapter_alone_does_not_know_its_data(lora_run) -> None:
    with pytest.raises(ConfigError, match="--data is missing"):
        evaluate(str(lora_run / "adapter"), EvalConfig())


@pytest.fixture(scope="module")
def looked(full_run, lora_run, tmp_path_factory):
    """A result with everything that may stand beside a score, and its file."""
    out = tmp_path_factory.mktemp("looked") / "e.json"
    config = EvalConfig(
        swap_images=True, compare=str(lora_run), metrics=("exact_match", "cer"), precision=("16bit,32bit",), out=out
    )
    return evaluate(str(full_run), config), out


def test_the_table_for_the_eye(looked, full_run, lora_run) -> None:
    result, _ = looked
    head, model, compared, names, *lines = describe_result(result).splitlines()
    assert head.startswith("val: 6 rows of ")
    # whole names, however long
    assert (model, compared) == (f"model: {full_run}", f"compared: {lora_run}")
    assert names.split() == ["exact_match", "cer"]
    found = {line[:28].strip(): line[28:].split("]")[0] + "]" for line in lines}
    assert list(found)[:8] == [
        "model in 32bit", "in 16bit", "16bit - 32bit, paired", "pictures swapped", "own - swapped, paired",
        "compared", "model - compared, paired", f"always {result['majority']['answer']!r}",
    ]  # fmt: skip
    assert found["model in 32bit"].strip() == "1.000 [1.000, 1.000]"
    assert found["pictures swapped"].strip() == "0.000 [0.000, 0.000]"
    assert found["own - swapped, paired"].strip() == "+1.000 [+1.000, +1.000]"
    difference = result["compare"]["paired"]["exact_match"]["difference"]
    assert f"{difference:+.3f} [" in found["model - compared, paired"]
    assert not any(line.startswith("warning") for line in lines)


def test_precisions_are_paired_with_the_widest(looked) -> None:
    result, out = looked
    assert result["load_in"] == "32bit"
    assert result["precision"]["reference"] == "32bit"
    assert list(result["precision"]["others"]) == ["16bit"]
    other = result["precision"]["others"]["16bit"]
    assert other["paired"]["exact_match"]["base"] == result["scores"]["exact_match"]["value"]
    right = [line["16bit"] == line["references"][0] for line in lines_of(out.with_suffix(".jsonl"))]
    assert other["scores"]["exact_match"]["value"] == pytest.approx(sum(right) / 6)


def test_precisions_that_this_machine_cannot_hold_are_refused_first(full_copy, monkeypatch) -> None:
    monkeypatch.setattr("vlmtrain.evaluation.load_answering_model", lambda *_, **__: pytest.fail("loaded a model"))
    with pytest.raises(MissingDependencyError, match="load_in '8bit' needs a GPU"):
        evaluate(str(full_copy), EvalConfig(precision=("4bit,8bit,16bit",)))
    with pytest.raises(ConfigError, match="precision: '5bit' is not one of 4bit, 8bit, 16bit, 32bit"):
        EvalConfig(precision=("5bit",))
    with pytest.raises(ConfigError, match="--precision and --load-in both say"):
        EvalConfig(precision=("16bit",), load_in="32bit")
    assert EvalConfig(precision=("4bit, 16bit", "8bit", "4bit")).precisions == ("16bit", "8bit", "4bit")


def test_labels_are_tabulated(build, full_run, tmp_path) -> None:
    rows = [make_row(i) for i in range(100, 112)]
    for row in rows[:2]:
        row["references"] = ["purple"]
    data = build(rows[:1], val=rows)
    result = evaluate(str(full_run), EvalConfig(data=data, metrics=("macro_f1",), out=tmp_path / "e.json"))
    references = [row["references"][0] for row in rows]
    confusion = result["confusion"]
    assert confusion["labels"] == tuple(sorted(set(references)))
    assert confusion["columns"] == (*confusion["labels"], "(other)")
    predictions = [line["prediction"] for line in lines_of(tmp_path / "e.jsonl")]
    for label, counts in zip(confusion["labels"], confusion["counts"], strict=True):
        for column, count in zip(confusion["columns"][:-1], counts, strict=False):
            assert count == sum(pair == (label, column) for pair in zip(references, predictions, strict=True))
    table = describe_result(result).splitlines()
    start = table.index("confusion (a line a label, a column an answer):")
    assert table[start + 1].split() == list(confusion["labels"])
    purple = next(line for line in table[start:] if line.strip().startswith("purple"))
    assert sum(int(cell) for cell in purple.split()[1:] if cell.isdigit()) == 2


def test_texts_are_not_tabulated() -> None:
    assert are_labels([["red"], ["blue"], ["Red"], ["blue"]])
    assert not are_labels([["red"], ["blue"], ["green"]])
    assert not are_labels([["red"]] * 10)
    assert not are_labels([["one\nline"], ["two"]] * 10)
    assert not are_labels([[f"label {i // 2}"] for i in range(102)])


def test_the_page_shows_the_rows_that_went_wrong(looked, full_run, build, tmp_path) -> None:
    page = looked[1].with_suffix(".html").read_text()
    assert "Every row is right by exact match" in page
    assert "own - swapped, paired" in page
    rows = [make_row(i) for i in range(100, 106)]
    rows[3]["references"] = ["<b>purple</b> \u202e"]
    evaluate(str(full_run), EvalConfig(data=build(rows[:1], val=rows), out=tmp_path / "e.json"))
    page = (tmp_path / "e.html").read_text()
    assert "1 of 6 rows are not perfect by exact match" in page
    assert "&lt;b&gt;purple&lt;/b&gt;" in page
    assert "<b>purple" not in page
    # a character that turns the text around is seen, as on the other pages
    assert "\u202e" not in page
    assert rows[3]["id"] in page
    assert page.count("<img src") == 1
    [picture] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    shown = Image.open(io.BytesIO(base64.b64decode(picture)))
    original = Image.open(io.BytesIO(rows[3]["images"][0]["bytes"]))
    assert shown.size == original.size
    assert shown.getpixel((5, 5)) == pytest.approx(original.getpixel((5, 5)), abs=4)


def test_a_model_that_does_not_look_is_warned_about(full_run) -> None:
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "difference": 0.01, "rows": 9}
    same = {"exact_match": cell | {"low": -0.02, "high": 0.03}}
    result = {"split": "val", "rows": 9, "data": "d", "load_in": "32bit", "model": "m"}
    result |= {"scores": {"exact_match": cell}, "swapped": {"scores": {"exact_match": cell}, "paired": same}}
    assert "warning: swapping the pictures changes no score" in describe_result(result)
    same["exact_match"]["low"] = 0.001
    assert "warning" not in describe_result(result)
