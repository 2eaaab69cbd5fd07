"""The page of rows as the model is given them: every token is there, nothing of the data runs."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import pytest

from made_rows import make_conversation, make_row, turn, write_folder
from vlmdata.errors import ConfigError
from vlmdata.families import FAMILIES
from vlmtrain.masks import mask_labels
from vlmtrain.preview import token_runs, write_preview
from vlmtrain.preview_config import PreviewConfig

HOSTILE = '<script>alert(1)</script> & "quotes" <img src=x onerror=alert(2)> 日本 🙂'


def test_hostile_texts_are_shown_not_run(build, tiny_qwen, tmp_path: Path) -> None:
    rows = [
        make_conversation(0, [turn("user", None, HOSTILE), turn("assistant", HOSTILE)], [(60, 60)]),
        make_conversation(1, [turn("user", "2+2?"), turn("assistant", "4")]),
        *(make_row(index) for index in range(2, 6)),
    ]
    out = tmp_path / "pages" / "rows.html"
    config = PreviewConfig(data=build(rows), model=str(tiny_qwen), out=out, rows=4)
    assert write_preview(config) == f"{out}: 4 of 6 rows"
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert set(re.findall(r"(?:src|href)=\"([^\"]{5})", page)) == {"data:"}
    assert page.count("<article>") == 4
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert shown.count(HOSTILE) == 2
    assert "row 0" in shown
    # 60 x 60 px become 56 x 56 and so four tokens
    assert "<|image_pad|> ×4" in shown
    assert "pictures are rounded to multiples of 28 px" in shown


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "pixtral", "llava-1.6", "llama3.2-vision"])
def test_runs_are_the_whole_row_in_order(name, chat_of) -> None:
    chat = chat_of(name)
    messages = [turn("user", f"Is it {HOSTILE}?"), turn("assistant", f"Ja:\n\n{HOSTILE}"), turn("user", "Why?")]
    messages.append(turn("assistant", "No idea. " * 60))
    ids = chat.processor.tokenizer(chat.render(messages), add_special_tokens=False)["input_ids"]
    labels = mask_labels(ids, chat.rules)
    runs = token_runs(ids, labels, chat)
    assert sum(run.tokens for run in runs) == len(ids)
    learned = ["".join(run.pieces) for run in runs if run.kind == "loss"]
    stop = FAMILIES[name].stop_tokens[0]
    assert [each.strip().removesuffix(stop).strip() for each in learned] == [
        f"Ja:\n\n{HOSTILE}",
        ("No idea. " * 60).strip(),
    ]
    assert all("\ufffd" not in piece for run in runs for piece in run.pieces)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows must be positive, not 0"):
        PreviewConfig(data=Path(), model="m", rows=0)


def test_nothing_is_said_twice(colours, tiny_qwen, tmp_path) -> None:
    config = PreviewConfig(data=colours, model=str(tiny_qwen), out=tmp_path / "p.html", rows=3)
    write_preview(config)
    page = config.out.read_text(encoding="utf-8")
    assert "3 are shown: the longest, the shortest, and others by --seed." in page
    row = make_row(0) | {"id": "made:0"}
    write_folder(tmp_path / "one", {"train": [row]})
    write_preview(dataclasses.replace(config, data=tmp_path / "one"))
    page = config.out.read_text(encoding="utf-8")
    assert page.count("made:0") == 1
    assert "are shown" not in page
    assert " to " not in page.partition("a row takes ")[2].partition(".")[0]
