"""Rows of other trainers' formats: which format they are told to be, and the conversation they become."""

from __future__ import annotations

import pickle
import time

import pytest

from vlmdata.config import ColumnConfig, InputConfig
from vlmdata.errors import ConfigError
from vlmdata.formats import convert_row, expand_answers, plan_reading
from vlmdata.formats.reading import Reading
from vlmdata.formats.validation import measure_repetition
from vlmdata.sample import ImageRef, Problem, Sample
from vlmdata.text_config import TextConfig

DATA_URI = "data:image/png;base64,iVBORw0KGgo="


def plan(*rows: dict, format: str = "auto", description: dict | None = None, **options) -> Reading:
    texts = TextConfig(**{name: options.pop(name) for name in TextConfig.__slots__ if name in options})
    config = InputConfig(format=format)
    return plan_reading(rows, config, ColumnConfig(**options), None, texts=texts, description=description)


def convert(row: dict, *, like: dict | None = None, **options) -> Sample | Problem:
    return convert_row(row, 3, "set", pickle.loads(pickle.dumps(plan(like or row, **options))))


def turns(row: dict, **options) -> list[tuple[str, list[str]]]:
    sample = convert(row, **options)
    assert isinstance(sample, Sample), sample
    return [(m.role, ["IMAGE" if p.type == "image" else p.text for p in m.content]) for m in sample.messages]


def locations(row: dict, **options) -> list[str | None]:
    sample = convert(row, **options)
    assert isinstance(sample, Sample), sample
    return [image.location for image in sample.images]


def reason(row: dict, **options) -> str:
    problem = convert(row, **options)
    assert isinstance(problem, Problem), problem
    return problem.reason


def chat(*texts: object) -> list[dict]:
    return [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(texts)]


OPENAI = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        *chat(
            [
                {"type": "text", "text": "Compare"},
                {"type": "image_url", "image_url": {"url": DATA_URI, "detail": "low"}},
                {"type": "text", "text": "and"},
                {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            ],
            "Same.",
        ),
    ]
}
AXOLOTL = {
    "messages": chat(
        [
            {"type": "image", "path": "a.png"},
            {"type": "image", "url": "https://a.example/b.png"},
            {"type": "image", "base64": "iVBORw0KGgo="},
            {"type": "image", "image": "c.png"},
            {"type": "text", "text": "Which?"},
        ],
        [{"type": "text", "text": "None."}],
    )
}
TRL = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
    "completion": [{"role": "assistant", "content": "A cat."}],
    "images": ["a.png"],
}
SWIFT = {
    "query": "Picture 1: <img>a.png</img>\nand <img>b c.png</img> same?",
    "response": "No.",
    "history": [["Hi", "Hello"]],
    "system": "Be brief.",
}
ALPACA = {"instruction": "Add.", "input": "1 + 1", "output": "2", "history": [["Hi", "Hello"]], "system": "Be brief."}
FINEVISION = {
    "images": [{"bytes": b"x", "path": None}],
    "texts": [{"user": "What?", "assistant": "A cat."}, {"user": "Colour?", "assistant": "Black."}],
    "source": "vqa",
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}],
    "images": ["a.png"],
    "system": "Be brief.",
}
PAIRS = {"conversation": [{"human": "Hi", "assistant": "Hello"}, {"human": "Bye", "assistant": "Goodbye"}]}
COCO = {"id": 9, "image_id": 9, "image": "9.jpg", "captions": ["A cat.", "One cat.", "A cat."]}
TAR = {"__key__": "k", "id": "k", "image": {"bytes": b"x", "path": "k.jpg"}, "text": "A cat."}


@pytest.mark.parametrize(
    ("row", "format"),
    [
        (OPENAI, "openai"),
        (AXOLOTL, "axolotl"),
        ({"messages": chat("a", "b"), "images": []}, "messages"),
        (TRL, "trl"),
        ({"prompt": "a", "completion": "b"}, "trl"),
        (SHAREGPT, "sharegpt"),
        ({"conversations": chat("a", "b")}, "sharegpt"),
        (PAIRS, "sharegpt"),
        ({"image": "a.png", "conversations": SHAREGPT["conversations"]}, "llava"),
        (SWIFT, "swift"),
        ({"query": "<img>a.png</img>a", "response": "b"}, "swift"),
        ({"query": "a", "response": "b"}, "columns"),
        (ALPACA, "alpaca"),
        ({"instruction": "a", "output": "b", "image": "c.png"}, "columns"),
        (FINEVISION, "finevision"),
        (COCO, "captions"),
        (TAR, "captions"),
        ({**TAR, "question": "What?"}, "columns"),
        ({**TAR, "conversations": SHAREGPT["conversations"]}, "llava"),
    ],
)
def test_formats_are_told_apart(row: dict, format: str) -> None:
    assert plan(row).format == format
    # rows of a format that come after others, and rows that lack it, do not hide it
    assert plan({"other": 1}, row).format == format
    # what is told can be said
    assert turns(row, format=format) == turns(row)


def test_openai_messages() -> None:
    assert turns(OPENAI) == [
        ("system", ["Be brief."]),
        ("user", ["Compare", "IMAGE", "and", "IMAGE"]),
        ("assistant", ["Same."]),
    ]
    assert locations(OPENAI) == [DATA_URI, "https://a.example/b.png"]
    untrained = {"messages": [OPENAI["messages"][1], {"role": "assistant", "content": "x", "weight": 0}]}
    assert reason(untrained) == "untrained_turn"
    calls = {"messages": [OPENAI["messages"][1], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}
    assert reason(calls) == "unsupported_part"
    audio = [{"type": "input_audio", "input_audio": {}}, OPENAI["messages"][1]["content"][1]]
    assert reason({"messages": chat(audio, "x")}) == "unsupported_part"


def test_axolotl_parts() -> None:
    assert turns(AXOLOTL)[0] == ("user", ["IMAGE"] * 4 + ["Which?"])
    assert locations(AXOLOTL) == [
        "a.png",
        "https://a.example/b.png",
        "data:image;base64,iVBORw0KGgo=",
        "c.png",
    ]
    # a column of images beside parts that carry none is used, but not twice
    assert locations({"messages": chat([{"type": "image"}], "x"), "images": ["d.png"]}, like=AXOLOTL | {"images": []})
    assert reason({**AXOLOTL, "images": ["d.png"]}) == "images_twice"
    assert reason({"messages": chat([{"type": "image", "image": ["a", "b"]}], "x")}) == "bad_message"


def test_parts_from_tables_have_empty_fields() -> None:
    part = {"type": "text", "text": "What?", "image_url": None}
    image = {"type": "image_url", "text": None, "image_url": {"url": "a.png"}}
    row = {"messages": [{"role": "user", "content": [image, part], "tool_calls": None}, *chat("", "x")[1:]]}
    assert turns(row) == [("user", ["IMAGE", "What?"]), ("assistant", ["x"])]


def test_trl_prompt_and_completion() -> None:
    expected = [("system", ["Be brief."]), ("user", ["IMAGE", "What?"]), ("assistant", ["A cat."])]
    assert turns(TRL) == expected
    assert turns({"prompt": "<image>What?", "completion": "x", "image": "a.png"})[0] == ("user", ["IMAGE", "What?"])
    assert reason({"prompt": chat("a", "b"), "completion": chat("c")}) == "no_answer"
    assert reason({"prompt": "a", "completion": " "}) == "empty_text"
    assert reason({"prompt": "a", "completion": []}) == "no_messages"


def test_swift_queries() -> None:
    assert turns(SWIFT) == [
        ("system", ["Be brief."]),
        ("user", ["Hi"]),
        ("assistant", ["Hello"]),
        ("user", ["IMAGE", "and ", "IMAGE", " same?"]),
        ("assistant", ["No."]),
    ]
    assert locations(SWIFT) == ["a.png", "b c.png"]
    beside = {"query": "<image>a", "response": "b", "images": ["c.png"]}
    assert turns(beside)[0] == ("user", ["IMAGE", "a"])
    assert reason({**SWIFT, "images": ["c.png"]}) == "images_twice"
    assert reason({**beside, "history": [["a"]]}) == "bad_message"
    assert reason({**beside, "history": "no"}) == "bad_message"
    assert reason({**beside, "history": [["a", None]]}) == "empty_text"


def test_alpaca_rows() -> None:
    assert turns(ALPACA)[3:] == [("user", ["Add.\n1 + 1"]), ("assistant", ["2"])]
    assert turns(ALPACA)[:3] == [("system", ["Be brief."]), ("user", ["Hi"]), ("assistant", ["Hello"])]
    assert turns({"instruction": "Add.", "input": "", "output": "2"})[0] == ("user", ["Add."])
    assert reason({"instruction": "", "input": None, "output": "2"}) == "empty_text"
    assert reason({"instruction": ["a"], "input": None, "output": "2"}) == "not_text"


def test_finevision_texts() -> None:
    assert turns(FINEVISION) == [
        ("user", ["IMAGE", "What?"]),
        ("assistant", ["A cat."]),
        ("user", ["Colour?"]),
        ("assistant", ["Black."]),
    ]
    assert turns({**FINEVISION, "images": []})[0] == ("user", ["What?"])
    assert reason({**FINEVISION, "texts": []}, like=FINEVISION) == "no_messages"
    assert reason({**FINEVISION, "texts": ["a"]}, like=FINEVISION) == "bad_message"


def test_sharegpt_turns() -> None:
    assert turns(SHAREGPT) == [("system", ["Be brief."]), ("user", ["IMAGE", "What?"]), ("assistant", ["A cat."])]
    assert [role for role, _ in turns(PAIRS)] == ["user", "assistant"] * 2
    tool = [*SHAREGPT["conversations"], {"from": "function_call", "value": "{}"}]
    assert reason({**SHAREGPT, "conversations": tool}) == "unsupported_role"


def test_captions_are_asked_for() -> None:
    assert turns(COCO) == [("user", ["IMAGE", "Describe the image."]), ("assistant", ["A cat."])]
    assert "instruction 'Describe the image.'" in plan(COCO).describe()
    assert turns(COCO, instruction="Say what you see.")[0] == ("user", ["IMAGE", "Say what you see."])
    assert convert(COCO).references == ["A cat.", "One cat."]
    # a question is not made up for other files
    with pytest.raises(ConfigError, match="no column for the instruction"):
        plan({"image": "a.png", "caption": "A cat."})


NAMED = {
    "chat": [{"who": "S", "says": "Be brief."}, {"who": "U", "says": "<image>Hi"}, {"who": "A", "says": "Hello"}],
    "pictures": ["a.png"],
}
TAGS = {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "A", "system_tag": "S"}
ENTRY = {"formatting": "sharegpt", "columns": {"messages": "chat", "images": "pictures"}, "tags": TAGS}


def test_files_that_llamafactory_describes() -> None:
    assert plan(NAMED, description=ENTRY).format == "llamafactory"
    assert turns(NAMED, description=ENTRY) == [
        ("system", ["Be brief."]),
        ("user", ["IMAGE", "Hi"]),
        ("assistant", ["Hello"]),
    ]
    row = {"q": "Add.", "more": "1 + 1", "a": "2", "rules": "Be brief.", "before": [["Hi", "Hello"]]}
    columns = {"prompt": "q", "query": "more", "response": "a", "system": "rules", "history": "before"}
    assert turns(row, description={"columns": columns}) == turns(ALPACA)
    assert turns(
        {"messages": chat("a", "b")}, description={"formatting": "openai", "columns": {"messages": "messages"}}
    )
    assert reason({**NAMED, "chat": [{"who": "U", "says": None}]}, description=ENTRY) == "bad_message"
    assert reason({**NAMED, "chat": [{"who": "tool", "says": "x"}]}, description=ENTRY) == "unsupported_role"
    films = {**ENTRY, "columns": {**ENTRY["columns"], "videos": "films"}}
    assert reason({**NAMED, "films": ["a.mp4"]}, description=films) == "unsupported_part"
    # options about columns win over the entry
    assert plan({"q": "a", "a": "b"}, description=ENTRY, instruction="q", response="a").format == "columns"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**ENTRY, "ranking": True}, "preference pairs"),
        ({**ENTRY, "formatting": "csv"}, "formatting 'csv' is not alpaca"),
        ({**ENTRY, "columns": {"messages": "talk"}}, "no column 'talk'; columns: 'chat', 'pictures'"),
    ],
)
def test_descriptions_that_do_not_fit(entry: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(NAMED, description=entry)
    with pytest.raises(ConfigError, match=r"no dataset_info\.json"):
        plan(NAMED, format="llamafactory")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pairs"),
        ({"question_id": 1, "image": "a.jpg", "text": "What?"}, "questions without answers"),
        ({"question_id": 1, "text": "A cat."}, "answers without questions"),
        ({"response": "Once upon a time"}, "texts for pretraining"),
    ],
)
def test_what_is_no_training_set_is_called_by_its_name(row: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(row)


def test_the_answer_to_train_on() -> None:
    row = {"question": "x", "answers": [{"answer": each} for each in ("one", "two", "2", "two", "one", "two")]}
    assert convert(row).references == ["one", "two", "2"]
    common = convert(row, answers="most-common")
    assert common.references == ["two", "one", "2"]
    assert turns(row, answers="most-common")[1] == ("assistant", ["two"])
    tied = {"question": "x", "answers": ["b", "a", "a", "b"]}
    assert convert(tied, answers="most-common").references == ["b", "a"]


def test_a_row_for_each_answer() -> None:
    row = {"id": "v", "question": "x", "answers": ["one", "two", "one", 2]}
    reading = plan(row, answers="all")
    rows = [(0, row), (1, {**row, "answers": "one"}), (2, {**row, "answers": [["bad"], "one"]}), (3, Problem("a", "b"))]
    expanded = list(expand_answers(rows, reading))
    assert [index for index, _ in expanded] == [0, 0, 0, 1, 2, 3]
    samples = [convert_row(each, index, "set", reading) for index, each in expanded[:4]]
    assert [sample.id for sample in samples] == ["v#1", "v#2", "v#3", "v"]
    assert [sample.references for sample in samples] == [
        ["one", "two", "2"],
        ["two", "one", "2"],
        ["2", "one", "two"],
        ["one"],
    ]
    assert convert_row(expanded[4][1], 2, "set", reading).reason == "not_text"
    assert list(expand_answers(rows, plan(row))) == rows


@pytest.mark.parametrize(("answer", "place"), [("dog", 1), ("B", 1), ("b", 1), (1, 1), ("1", 1), (" cat ", 0)])
def test_choices(answer: object, place: int) -> None:
    row = {"question": "Which?", "choices": ["cat", "dog"], "answer": answer}
    letter, text = [("A", "cat"), ("B", "dog")][place]
    assert turns(row) == [("user", ["Which?\nA. cat\nB. dog"]), ("assistant", [letter])]
    assert convert(row).references == [letter, text]
    assert turns(row, choices="text")[1] == ("assistant", [text])
    assert turns(row, choices="ignore")[0] == ("user", ["Which?"])
    assert turns({**row, "choices": '["cat", "dog"]'}) == turns(row)


def test_choices_of_another_kind() -> None:
    row = {"question": "Which?", "options": ["cat", "dog"], "answer": "bird"}
    assert reason(row) == "bad_choices"
    assert reason({**row, "options": ["cat", None]}) == "bad_choices"
    assert turns({**row, "options": []}) == [("user", ["Which?"]), ("assistant", ["bird"])]
    assert turns({**row, "options": None})[1] == ("assistant", ["bird"])
    assert turns({**row, "options": "(1) cat (2) bird"})[0] == ("user", ["Which?\n(1) cat (2) bird"])
    # numbers as choices: the text wins over the place
    assert turns({"question": "n?", "choices": ["2", "1", "0"], "answer": "2"})[1] == ("assistant", ["A"])


def test_limits_of_texts() -> None:
    row = {"question": "page\x0bone\x00", "answer": "x" * 50}
    assert reason(row) == "control_character"
    assert turns(row, control_characters="strip")[0] == ("user", ["page\none"])
    assert reason(row, control_characters="strip", max_chars=50) == "text_too_long"
    loop = {"question": "x", "answer": "the same words again and " * 40}
    assert turns(loop)[1][0] == "assistant"
    assert reason(loop, max_repetition=0.8) == "repetitive_text"
    assert reason({"question": "x", "answers": ["fine", "\ud800"]}) == "bad_encoding"
    with pytest.raises(ConfigError, match="max_chars"):
        TextConfig(max_chars=0, max_repetition=2)


def test_repetition_is_measured_alike_in_every_script() -> None:
    english = "".join(f"Line {i} of the poem, {i * i} and {i**3}; " for i in range(99))
    chinese = "".join(chr(0x4E00 + (i * i * 31) % 2000) for i in range(600))
    assert measure_repetition(english) < 0.5
    assert measure_repetition(chinese) < 0.5
    for text in (english[:40], chinese[:40]):
        assert measure_repetition(text * 50) > 0.95
    assert measure_repetition("abc" * 20) == 0


def test_rows_keep_several_images_in_order() -> None:
    row = {"messages": chat("<image> or <image>?", "First.", "And <image>?", "Third."), "images": ["a", "b", "c"]}
    assert turns(row)[0] == ("user", ["IMAGE", " or ", "IMAGE", "?"])
    assert turns(row)[2] == ("user", ["And ", "IMAGE", "?"])
    assert convert(row).images == [ImageRef("a"), ImageRef("b"), ImageRef("c")]


def test_image_columns_that_come_late_are_read() -> None:
    early = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    shown = {"conversations": SHAREGPT["conversations"]}
    assert locations({**shown, "images": ["b.png"]}, like=early) == ["b.png"]
    assert locations({**shown, "image": "a.png"}, like={**early, "images": []}) == ["a.png"]
    assert locations({**shown, "image": "a.png", "images": None}, like=early) == ["a.png"]
    # what an option names is all there is
    assert reason({**shown, "images": ["b.png"]}, like={**early, "picture": ""}, image=("picture",)) == (
        "placeholder_mismatch"
    )
    asked = {"question": "What?", "answer": "A cat."}
    assert locations({**asked, "image": "a.png"}, like=asked) == ["a.png"]
    assert locations(asked) == []
    assert reason(asked, like={**asked, "image": "a.png"}) == "image_missing"


@pytest.mark.parametrize("text", ["<img>", "Picture 1", "<img>a", "</img><img>"])
def test_long_texts_of_tags_take_no_long_time(text: str) -> None:
    started = time.monotonic()
    convert({"query": text * 200_000, "response": "b", "history": []})
    assert time.monotonic() - started < 5
