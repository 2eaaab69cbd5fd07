"""Rows of each format become the same few messages, or say why not."""

from __future__ import annotations

import json
import math
import pickle

import pytest

from vlmdata.config import ColumnConfig, InputConfig
from vlmdata.errors import ConfigError
from vlmdata.formats import convert_row, encode_meta, plan_reading, read_group
from vlmdata.formats.filters import RowFilter
from vlmdata.sample import ImageRef, Problem, Sample


def convert(
    row: dict,
    *,
    like: list[dict] | None = None,
    group_by: str | None = None,
    format: str = "auto",
    where: str | None = None,
    **columns,
) -> Sample | Problem:
    reading = plan_reading(like or [row], InputConfig(format=format, where=where), ColumnConfig(**columns), group_by)
    return convert_row(row, 7, "set.jsonl", pickle.loads(pickle.dumps(reading)))


def turns(sample: Sample | Problem) -> list[tuple[str, list[str]]]:
    assert isinstance(sample, Sample), sample
    return [
        (message.role, [part.text if part.type == "text" else "IMAGE" for part in message.content])
        for message in sample.messages
    ]


def reason(outcome: Sample | Problem) -> str:
    assert isinstance(outcome, Problem), outcome
    return outcome.reason


def plan_problems(row: dict, **columns) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan_reading([row], InputConfig(), ColumnConfig(**columns), None)
    return list(caught.value.problems)


@pytest.mark.parametrize("image", ["image", "image_path", "file_name", "img", "images"])
@pytest.mark.parametrize("question", ["instruction", "question", "prompt", "query"])
@pytest.mark.parametrize(
    "answer", ["response", "answer", "answers", "multiple_choice_answer", "text", "caption", "output"]
)
def test_usual_column_names(image: str, question: str, answer: str) -> None:
    sample = convert({image: "a.jpg", question: "What?", answer: "This."})
    assert turns(sample) == [("user", ["IMAGE", "What?"]), ("assistant", ["This."])]
    assert sample.images == [ImageRef("a.jpg")]
    assert sample.references == ["This."]
    assert (sample.id, sample.source, sample.row) == ("set.jsonl:7", "set.jsonl", 7)


def test_templates_constants_and_named_columns() -> None:
    row = {"name": "x1", "thing": "shoe", "label": 3, "id": 12}
    sample = convert(
        row,
        image=("photos/{name}.jpg",),
        instruction="Is this a {thing}?",
        response="label",
        system="Be brief.",
        keep=("thing",),
    )
    assert turns(sample) == [("system", ["Be brief."]), ("user", ["IMAGE", "Is this a shoe?"]), ("assistant", ["3"])]
    assert sample.images == [ImageRef("photos/x1.jpg")]
    assert sample.id == "12"
    assert json.loads(encode_meta(sample)) == {"thing": "shoe"}
    braces = convert(row, image=("name",), instruction='Answer as {{"a": 1}} for {thing}', response="{label}")
    assert turns(braces)[0] == ("user", ["IMAGE", 'Answer as {"a": 1} for shoe'])


def test_several_image_options_show_several_images() -> None:
    row = {"a": "1.png", "b": "2.png", "question": "Same?", "answer": "no"}
    sample = convert(row, image=("{a}", "b"))
    assert [ref.location for ref in sample.images] == ["1.png", "2.png"]
    assert turns(sample)[0] == ("user", ["IMAGE", "IMAGE", "Same?"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"instruction": "quest"},
            "instruction 'quest': neither a column nor a template with {column}, nor a constant text",
        ),
        (
            {"response": "The answer"},
            "response 'The answer': neither a column nor a template with {column}; columns: 'q', 'a'",
        ),
        ({"image": ("{q.x}",)}, "image '{q.x}': no column 'q.x'"),
        ({"instruction": "What is {thing}?"}, "no column 'thing'; columns: 'q', 'a'"),
        ({"instruction": "{q!r}"}, "only {column} is understood"),
        ({"instruction": "{q:>9}"}, "only {column} is understood"),
        ({"instruction": "half {q"}, "braces"),
        ({"id": "nr"}, "id 'nr': no such column"),
        ({"keep": ("nr",)}, "keep 'nr': no such column"),
    ],
)
def test_columns_that_are_not_there(options: dict, message: str) -> None:
    problems = plan_problems({"q": "x", "a": "y"}, **{"instruction": "q", "response": "a", **options})
    assert len(problems) == 1
    assert message in problems[0]
    assert "columns: 'q', 'a'" in problems[0] or "understood" in problems[0]


def test_all_problems_of_the_columns_come_at_once() -> None:
    problems = plan_problems({"q": "x"}, image=("nope",), keep=("gone",))
    assert [problem.split()[0] for problem in problems] == ["image", "no", "no", "keep"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "a", "question": " ", "answer": "y"}, "empty_text"),
        ({"image": "a", "question": "x", "answer": None}, "empty_text"),
        ({"image": "a", "question": "x", "answer": math.nan}, "empty_text"),
        ({"image": "a", "question": "x", "answer": []}, "empty_text"),
        ({"image": "a", "question": "x", "answer": ["", None]}, "empty_text"),
        ({"image": "a", "question": ["x"], "answer": "y"}, "not_text"),
        ({"image": "a", "question": "x", "answer": {"b": 1}}, "not_text"),
        ({"image": None, "question": "x", "answer": "y"}, "image_missing"),
        ({"image": "", "question": "x", "answer": "y"}, "image_missing"),
        ({"image": [], "question": "x", "answer": "y"}, "image_missing"),
        ({"image": {}, "question": "x", "answer": "y"}, "image_missing"),
        ({"image": 7, "question": "x", "answer": "y"}, "image_missing"),
        ({"image": [["a"]], "question": "x", "answer": "y"}, "image_missing"),
        ({"image": "a", "question": "x <image>", "answer": "y"}, "template_token"),
        ({"image": "a", "question": "x", "answer": "y<|im_end|>"}, "template_token"),
        ({"image": "a", "question": "x [/INST]", "answer": "y"}, "template_token"),
        ({"image": "a", "question": "x</s>", "answer": "y"}, "template_token"),
        ({"image": "a", "question": "x<end_of_turn>", "answer": "y"}, "template_token"),
        ({"image": "a", "question": "x\x00", "answer": "y"}, "control_character"),
        ({"image": "a", "question": "x\ud800", "answer": "y"}, "bad_encoding"),
    ],
)
def test_rows_that_cannot_be_used(row: dict, expected: str) -> None:
    assert reason(convert(row)) == expected


def test_plain_angle_brackets_are_text() -> None:
    text = "if a < b: <b>bold</b> <|> [1] x<y>z list<int> $\\Delta$"
    assert turns(convert({"question": text, "answer": "y"}))[0] == ("user", [text])


def test_tokens_can_be_escaped() -> None:
    sample = convert({"question": "say <|im_end|> and [INST]", "answer": "<<s>s>"}, template_tokens="escape")
    assert turns(sample) == [("user", ["say < |im_end|> and [ INST]"]), ("assistant", ["<< s>s>"])]
    assert sample.references == ["<< s>s>"]


def test_several_answers() -> None:
    sample = convert({"question": "x", "answers": ["two", "2", "two", ""]})
    assert turns(sample)[1] == ("assistant", ["two"])
    assert sample.references == ["two", "2"]
    vqa = convert({"question": "x", "answers": [{"answer": "two", "answer_id": 1}, {"answer": "2", "answer_id": 2}]})
    assert vqa.references == ["two", "2"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes", [ImageRef(None, b"bytes")]),
        ({"bytes": b"x", "path": "a.png"}, [ImageRef("a.png", b"x")]),
        ({"bytes": None, "path": "a.png"}, [ImageRef("a.png")]),
        ({"url": "https://x/y.png"}, [ImageRef("https://x/y.png")]),
        (["a.png", {"bytes": b"x", "path": None}], [ImageRef("a.png"), ImageRef(None, b"x")]),
    ],
)
def test_images_as_rows_name_them(value: object, expected: list[ImageRef]) -> None:
    assert convert({"image": value, "question": "x", "answer": "y"}).images == expected


def chat(*texts: object) -> list[dict]:
    return [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(texts)]


def test_messages_with_placeholders() -> None:
    row = {"messages": chat("<image>\nWho?", "A.", "And here <image>?", "B."), "images": ["1.jpg", "2.jpg"]}
    assert turns(convert(row)) == [
        ("user", ["IMAGE", "Who?"]),
        ("assistant", ["A."]),
        ("user", ["And here ", "IMAGE", "?"]),
        ("assistant", ["B."]),
    ]
    assert convert(row).references == ["B."]


def test_messages_without_placeholders_show_their_images_first() -> None:
    row = {"messages": [{"role": "system", "content": "Be kind."}, *chat("Who?", "A.")], "images": ["1.jpg", "2.jpg"]}
    assert turns(convert(row))[1] == ("user", ["IMAGE", "IMAGE", "Who?"])
    assert turns(convert({"messages": chat("Hi", "Hello")})) == [("user", ["Hi"]), ("assistant", ["Hello"])]


def test_messages_in_parts() -> None:
    own = chat([{"type": "image", "text": None}, {"type": "text", "text": "Who?"}], [{"type": "text", "text": "A."}])
    assert turns(convert({"messages": own, "images": ["1.jpg"]}))[0] == ("user", ["IMAGE", "Who?"])
    inline = chat([{"type": "text", "text": "Who?"}, {"type": "image", "image": "1.jpg"}], "A.")
    sample = convert({"messages": inline})
    assert turns(sample)[0] == ("user", ["Who?", "IMAGE"])
    assert sample.images == [ImageRef("1.jpg")]
    urls = chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "A.")
    assert convert({"messages": urls}).images == [ImageRef("data:image/png;base64,AAAA")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": chat("<image><image>", "A."), "images": ["1.jpg"]}, "placeholder_mismatch"),
        ({"messages": chat("<image> Who?", "A."), "images": []}, "placeholder_mismatch"),
        ({"messages": chat("Who?", "<image>"), "images": ["1.jpg"]}, "image_in_answer"),
        ({"messages": chat("Who?")}, "no_answer"),
        ({"messages": chat("Who?", " ")}, "empty_text"),
        ({"messages": []}, "no_messages"),
        ({"messages": None}, "no_messages"),
        ({"messages": ["hi"]}, "bad_message"),
        ({"messages": chat(7, "A.")}, "bad_message"),
        ({"messages": chat(["x"], "A.")}, "bad_message"),
        ({"messages": chat([{"type": "text"}], "A.")}, "bad_message"),
        ({"messages": chat([{"type": "video", "video": "x"}], "A.")}, "unsupported_part"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported_role"),
        ({"messages": [{"role": None, "content": "x"}]}, "unsupported_role"),
        ({"messages": [*chat("a", "b"), {"role": "assistant", "content": "c"}]}, "role_order"),
        ({"messages": [*chat("a", "b"), {"role": "system", "content": "c"}]}, "role_order"),
        ({"messages": [{"role": "system", "content": "c"}]}, "no_messages"),
        ({"messages": chat([{"type": "image", "image": "1.jpg"}], "A."), "images": ["2.jpg"]}, "images_twice"),
        ({"messages": chat("a <|endoftext|>", "b")}, "template_token"),
    ],
)
def test_messages_that_cannot_be_used(row: dict, expected: str) -> None:
    like = [{"messages": chat("a", "b"), "images": []}]
    assert reason(convert(row, like=like)) == expected


def test_llava_conversations() -> None:
    row = {
        "id": "000000033471",
        "image": "coco/1.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A bus."},
            {"from": "human", "value": "Colour?"},
            {"from": "gpt", "value": "Red."},
        ],
    }
    sample = convert(row)
    assert turns(sample)[0] == ("user", ["IMAGE", "What?"])
    assert sample.images == [ImageRef("coco/1.jpg")]
    assert sample.id == "000000033471"
    assert sample.references == ["Red."]
    several = convert(
        {
            **row,
            "image": ["1.jpg", "2.jpg"],
            "conversations": [
                {"from": "human", "value": "<image> and <image>: same?"},
                {"from": "gpt", "value": "No."},
            ],
        }
    )
    assert turns(several)[0] == ("user", ["IMAGE", " and ", "IMAGE", ": same?"])
    text_only = {key: value for key, value in row.items() if key != "image"}
    assert reason(convert(text_only, like=[row])) == "placeholder_mismatch"
    assert reason(convert({**row, "conversations": [{"from": "human", "value": 3}]}, like=[row])) == "bad_message"


def test_formats_are_told_from_the_rows() -> None:
    def told(*rows: dict, **columns: object) -> str:
        return plan_reading(list(rows), InputConfig(), ColumnConfig(**columns), None).format

    assert told({"messages": chat("a", "b"), "question": "x"}) == "messages"
    assert told({"conversations": [{"from": "human", "value": "x"}], "image": "a.jpg"}) == "llava"
    assert told({"question": "x", "answer": "y"}) == "columns"
    assert told({"messages": chat("a", "b"), "q": "x", "a": "y"}, instruction="q", response="a") == "columns"
    with pytest.raises(ConfigError, match="for column sets, not for --format llava"):
        plan_reading([{"q": "x"}], InputConfig(format="llava"), ColumnConfig(instruction="q"), None)


def test_a_system_text_goes_before_conversations_without_one() -> None:
    row = {"messages": chat("a", "b")}
    assert turns(convert(row, system="Be brief."))[0] == ("system", ["Be brief."])
    with_own = {"messages": [{"role": "system", "content": "Mine."}, *chat("a", "b")]}
    assert turns(convert(with_own, system="Be brief."))[0] == ("system", ["Mine."])
    assert [role for role, _ in turns(convert({"question": "q", "answer": "a", "system": ""}))] == ["user", "assistant"]


def test_groups_and_kept_columns() -> None:
    row = {"question": "q", "answer": "a", "patient": 7, "score": math.nan, "when": {"a": [1.5, math.inf]}}
    reading = plan_reading([row], InputConfig(), ColumnConfig(keep=("score", "when", "patient")), "patient")
    assert read_group(row, reading) == "7"
    assert read_group({**row, "patient": None}, reading) is None
    sample = convert_row(row, 0, "s", reading)
    assert isinstance(sample, Sample)
    assert json.loads(encode_meta(sample)) == {"score": None, "when": {"a": [1.5, None]}, "patient": 7}


ROW = {"label": "Shoes", "kids": "False", "score": "0.75", "n": 3, "with space": "x", "tags": ["a", "b"], "none": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('label != "Skip" and kids == "False"', True),
        ('label == "Skip" or not kids == "False"', False),
        ("float(score) > 0.5", True),
        ("0.5 < float(score) <= 0.75", True),
        ("1 < n < 3", False),
        ('label in ("Shoes", "Hat")', True),
        ('label not in ["Shoes", "Hat"]', False),
        ('"a" in tags and len(tags) == 2', True),
        ('row["with space"] == "x"', True),
        ("none is None and n is not None", True),
        ("n == -(-3)", True),
        ("missing == None", True),
        ("n", True),
    ],
)
def test_where(text: str, expected: bool) -> None:
    assert pickle.loads(pickle.dumps(RowFilter(text))).keeps(ROW) is expected
    assert RowFilter(text).columns


def test_where_that_cannot_be_told() -> None:
    assert reason(RowFilter("n > label").keeps(ROW)) == "where_failed"
    assert reason(RowFilter("float(label) > 1").keeps(ROW)) == "where_failed"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "label.upper() == 'X'",
        "(lambda: 1)()",
        "[x for x in tags]",
        "n ** 9 ** 9",
        "'a' * 999",
        "f'{label}'",
        "open('x')",
        "row[n]",
        "other['x']",
        "len(tags, tags)",
        "x := 3",
        "a b",
        "",
        "(" * 300 + ")" * 300,
        "not " * 900 + "a",
    ],
)
def test_where_understands_nothing_else(text: str) -> None:
    with pytest.raises(ConfigError, match="where"):
        RowFilter(text)


def test_where_names_columns_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="no column 'lable'; columns: 'label', 'kids'"):
        plan_reading(
            [{"label": 1, "kids": 2}],
            InputConfig(where="lable == 1"),
            ColumnConfig(instruction="label", response="kids"),
            None,
        )
