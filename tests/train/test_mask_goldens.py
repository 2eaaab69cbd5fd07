"""One conversation in each family, rendered and masked, against a file that a person has read.

The files hold the text as the model is given it, with what carries loss between ⟦ and ⟧ and image tokens counted.
After a change that is meant, VLMTRAIN_WRITE_GOLDENS=1 writes them anew: read them before they are committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from made_rows import make_conversation, turn
from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.collator import VisionCollator
from vlmtrain.preflight import show_masked_row
from vlmtrain.rows import open_rows

GOLDENS = Path(__file__).parent / "goldens"


def conversation(family, *, system: bool):
    """Two pictures in the first turn, another in the second where the family takes one there, and line breaks."""
    later = None if family.keeps_image_places and family.name != "llama3.2-vision" else "(no picture)"
    messages = [
        *([turn("system", "Answer in one word,\nwithout a full stop.")] if system else []),
        turn("user", None, None, "Which colour is the first?\nAnd the second?"),
        turn("assistant", "Red\n\nBlue"),
        turn("user", later, "Is this one green?"),
        turn("assistant", "No"),
    ]
    images = sum(part["type"] == "image" for message in messages for part in message["content"])
    return make_conversation(0, messages, [(60, 90), (120, 60), (56, 56)][:images])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_masked_text_is_the_one_that_was_read(name, chat_of, build) -> None:
    family, chat = FAMILIES[name], chat_of(name)
    system = family.system_with_images and name not in ("pixtral", "llava-1.5", "llava-1.6")
    folder = build([conversation(family, system=system)])
    row = open_rows(open_folder(folder).split("train"))[0]
    shown = []
    for last_turn_only in (False, True):
        batch = VisionCollator(chat, dtype=torch.float32, last_turn_only=last_turn_only)([row])
        shown.append(show_masked_row(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), chat))
    text = f"--train-on all\n{shown[0]}\n\n--train-on last\n{shown[1]}\n"
    file = GOLDENS / f"{name}.txt"
    if os.environ.get("VLMTRAIN_WRITE_GOLDENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
