"""The collator: padding, masks and pixels of a batch are those of its rows alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.collator import VisionCollator
from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.rows import open_rows

ROW = {
    "messages": [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which digit?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
    ],
    "images": [Image.new("RGB", (84, 56), "red")],
}


@pytest.fixture
def rows(colours):
    return [dict(row) for row in open_rows(open_folder(colours).split("train"))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_rows_padded_on_the_right(name, chat_of, rows) -> None:
    chat = chat_of(name)
    collate = VisionCollator(chat, dtype=torch.float32)
    chosen = rows[:4]
    batch, alone = collate(chosen), [collate([row]) for row in chosen]
    width = batch["input_ids"].shape[1]
    assert width == max(each["input_ids"].shape[1] for each in alone)
    for index, each in enumerate(alone):
        length = each["input_ids"].shape[1]
        assert batch["input_ids"][index, :length].equal(each["input_ids"][0])
        assert batch["labels"][index, :length].equal(each["labels"][0])
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (width - length)
        assert set(batch["labels"][index, length:].tolist()) <= {IGNORE_INDEX}
        assert (each["labels"][0] != IGNORE_INDEX).any()
    assert {"input_ids", "attention_mask", "labels", "pixel_values"} <= set(batch)


def test_what_the_models_need_beside_the_ids_is_kept(chat_of) -> None:
    for name, kept in {
        "qwen2.5-vl": "mm_token_type_ids",
        "gemma3": "token_type_ids",
        "llama3.2-vision": "cross_attention_mask",
        "pixtral": "image_sizes",
    }.items():
        assert kept in VisionCollator(chat_of(name), dtype=torch.float32)([ROW]), name


def test_pictures_are_not_resized(chat_of) -> None:
    large = ROW | {"images": [Image.new("RGB", (1120, 840), "red")]}
    batch = VisionCollator(chat_of("qwen2.5-vl"), dtype=torch.float32)([large, ROW])
    assert (batch["image_grid_thw"][:, 1:] * 14).tolist() == [[840, 1120], [56, 84]]


def test_the_beginning_of_the_sequence_stands_once(chat_of) -> None:
    for name in ("gemma3", "llama3.2-vision", "pixtral", "ministral3"):
        chat = chat_of(name)
        ids = VisionCollator(chat, dtype=torch.float32)([ROW])["input_ids"][0].tolist()
        assert ids[0] == chat.processor.tokenizer.bos_token_id
        assert ids.count(ids[0]) == 1


def test_pixels_come_in_the_models_precision(chat_of) -> None:
    batch = VisionCollator(chat_of("qwen2.5-vl"), dtype=torch.bfloat16)([ROW])
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_text_alone_makes_a_batch(chat_of) -> None:
    text = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is 2+2?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
        ],
        "images": [],
    }
    for name in FAMILIES:
        batch = VisionCollator(chat_of(name), dtype=torch.float32)([text, text])
        assert "pixel_values" not in batch
        assert (batch["labels"] != IGNORE_INDEX).any(dim=1).all()
    # Llama's processor wants a picture in every row or in none
    for name in set(FAMILIES) - {"llama3.2-vision"}:
        batch = VisionCollator(chat_of(name), dtype=torch.float32)([text, ROW])
        assert "pixel_values" in batch
        assert (batch["labels"] != IGNORE_INDEX).any(dim=1).all()


def test_only_the_last_answer_carries_loss_where_asked(chat_of, rows) -> None:
    chat = chat_of("qwen2.5-vl")
    [several] = [row for row in rows[:1] if len(row["messages"]) == 4]
    every = VisionCollator(chat, dtype=torch.float32)([several])["labels"][0]
    last = VisionCollator(chat, dtype=torch.float32, last_turn_only=True)([several])["labels"][0]
    places = (every != IGNORE_INDEX).nonzero()[:, 0].tolist()
    # both answers are the same word
    assert (last != IGNORE_INDEX).nonzero()[:, 0].tolist() == places[len(places) // 2 :]
    assert every[places].tolist() == last[places[len(places) // 2 :]].tolist() * 2
