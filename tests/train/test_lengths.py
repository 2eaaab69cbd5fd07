"""Lengths that are foreseen without decoding a picture against what the processor makes of the rows."""

from __future__ import annotations

import random

import pytest
import torch

from made_rows import make_conversation, turn
from vlmdata.errors import DataError
from vlmdata.families import FAMILIES, read_grid
from vlmdata.shards import open_folder
from vlmtrain.collator import VisionCollator
from vlmtrain.lengths import measure_lengths
from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.rows import open_rows


def random_rows(family, count):
    """Rows of the forms that the family can represent, with pictures of random sizes."""
    rng = random.Random(family.name)
    shapes = [
        [turn("user", None, "Which colour is this?"), turn("assistant", "red")],
        [turn("user", None, None, "Are these the same?"), turn("assistant", "Yes, both are red.\n\nBoth.")],
        [turn("user", "What is 2+2?"), turn("assistant", "4")],
        [turn("user", None, "\nWhich?"), turn("assistant", "red"), turn("user", "Sure?"), turn("assistant", "Yes.")],
        [turn("user", "Think first."), turn("assistant", "Yes."), turn("user", None, "?"), turn("assistant", "red")],
    ]
    if family.keeps_image_places and family.text_sees_later_images:
        shapes.append([turn("user", "Left:", None, "right:\n", None, "\n\nWhich?"), turn("assistant", "left")])
        shapes.append([turn("user", "Look here\n", None), turn("assistant", "red")])
    if family.system_with_images:
        shapes.append([turn("system", "Be brief."), turn("user", None, "Which?"), turn("assistant", "red")])
    rows = []
    for index in range(count):
        messages = shapes[index % len(shapes)]
        images = sum(part["type"] == "image" for message in messages for part in message["content"])
        sizes = [(rng.randint(20, 300), rng.randint(20, 300)) for _ in range(images)]
        rows.append(make_conversation(index, messages, sizes, rng.choice(["red", "blue"])))
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_foreseen_lengths_are_the_processors(name, chat_of, build) -> None:
    family, chat = FAMILIES[name], chat_of(name)
    split = open_folder(build(random_rows(family, 16))).split("train")
    for last_turn_only in (False, True):
        lengths = measure_lengths(split, chat, family, last_turn_only=last_turn_only)
        collate = VisionCollator(chat, dtype=torch.float32, last_turn_only=last_turn_only)
        batches = [collate([row]) for row in open_rows(split)]
        assert lengths.tokens.tolist() == [batch["input_ids"].shape[1] for batch in batches]
        learned = [int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches]
        assert lengths.supervised.tolist() == learned
        assert min(learned) > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_image_tokens_are_counted_as_such(name, chat_of, build) -> None:
    family, chat = FAMILIES[name], chat_of(name)
    question, answer = turn("user", None, "Which?"), turn("assistant", "red")
    rows = [make_conversation(0, [question, answer], [(240, 130)])]
    rows.append(make_conversation(1, [turn("user", "Which?"), answer]))
    lengths = measure_lengths(open_folder(build(rows)).split("train"), chat, family)
    expected = read_grid(family, chat.processor.to_dict()).image_tokens(240, 130)
    # Gemma's placeholder stays in front of the image's own tokens
    assert lengths.image_tokens.tolist() == [expected + (name == "gemma3"), 0]


def test_an_unknown_family_is_measured_by_its_processor(chat_of, build) -> None:
    for name in ("qwen2.5-vl", "gemma3", "llava-1.6"):
        family, chat = FAMILIES[name], chat_of(name)
        split = open_folder(build(random_rows(family, 8))).split("train")
        known, unknown = measure_lengths(split, chat, family), measure_lengths(split, chat, None)
        assert unknown.tokens.tolist() == known.tokens.tolist()


def test_no_picture_is_decoded(chat_of, build, monkeypatch) -> None:
    split = open_folder(build(random_rows(FAMILIES["qwen2.5-vl"], 8))).split("train")
    expected = measure_lengths(split, chat_of("qwen2.5-vl"), FAMILIES["qwen2.5-vl"]).tokens.tolist()

    def refuse(*_, **__):
        raise AssertionError("a picture was opened")

    monkeypatch.setattr("PIL.Image.open", refuse)
    assert measure_lengths(split, chat_of("qwen2.5-vl"), FAMILIES["qwen2.5-vl"]).tokens.tolist() == expected


def test_a_row_that_the_template_refuses_is_named(chat_of, build) -> None:
    good = [turn("user", None, "Which?"), turn("assistant", "red")]
    bad = [turn("system", "Be brief."), *good]
    rows = [make_conversation(0, good, [(60, 60)]), make_conversation(1, bad, [(60, 60)])]
    split = open_folder(build(rows)).split("train")
    with pytest.raises(DataError, match="train: row 1: the model's chat template refuses"):
        measure_lengths(split, chat_of("llama3.2-vision"), FAMILIES["llama3.2-vision"])


def test_a_picture_that_the_processor_refuses_is_named(chat_of, build) -> None:
    turns = [turn("user", None, "Which?"), turn("assistant", "red")]
    rows = [make_conversation(0, turns, [(60, 60)]), make_conversation(1, turns, [(2, 500)])]
    split = open_folder(build(rows)).split("train")
    with pytest.raises(DataError, match=r"train: row 1: the processor refuses a picture: 2x500 px"):
        measure_lengths(split, chat_of("qwen2.5-vl"), FAMILIES["qwen2.5-vl"])
