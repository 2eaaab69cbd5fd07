"""What is refused before the first step, and in which words."""

from __future__ import annotations

import dataclasses
from copy import copy, deepcopy
from pathlib import Path

import pytest
import torch

from made_rows import make_conversation, turn, write_folder
from vlmdata.errors import ConfigError, DataError
from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.chat import read_chat_format
from vlmtrain.collator import VisionCollator
from vlmtrain.config import DataConfig
from vlmtrain.family_rows import FamilyRows
from vlmtrain.preflight import check_collator, check_split, show_masked_row


def check(folder: Path, chat, name: str = "qwen2.5-vl", split: str = "train", **options):
    config = DataConfig(data=folder, **options)
    return check_split(open_folder(folder).split(split), config, chat, FAMILIES[name])


@pytest.fixture
def chat(chat_of):
    return chat_of("qwen2.5-vl")


def one_turn(index: int, answer: str, question: str = "Which?"):
    messages = [turn("user", None, question), turn("assistant", answer)]
    return make_conversation(index, messages, [(56, 56)])


def test_a_good_split_is_described(colours, chat) -> None:
    checked = check(colours, chat)
    assert (len(checked.rows), checked.dropped) == (24, 0)
    assert checked.max_length == checked.lengths.tokens.max()
    words = checked.describe()
    share = checked.lengths.supervised.sum() / checked.lengths.tokens.sum()
    assert words.startswith("train: 24 rows; tokens a row: median ")
    assert f"longest {checked.max_length} (limit {checked.max_length})" in words
    assert f"{share:.1%} carry loss\n  28 pictures, all taken in their stored size\n" in words
    assert words.endswith("the foreseen lengths of 16 random rows are the processor's")


def test_rows_without_a_learned_token_are_refused(build, chat) -> None:
    # the template changed after its markers were read
    processor = copy(chat.processor)
    processor.chat_template = (
        "{% for m in messages %}<|im_start|>{{ 'helper' if m.role == 'assistant' else m.role }}\n"
        "{% for p in m.content %}{{ '<|image_pad|>' if p.type == 'image' else p.text }}{% endfor %}<|im_end|>\n"
        "{% endfor %}"
    )
    rows = [one_turn(i, "red") for i in range(3)]
    with pytest.raises(DataError) as caught:
        check(build(rows), dataclasses.replace(chat, processor=processor))
    assert "3 of 3 rows have no token that carries loss (rows 0, 1, 2)" in str(caught.value)
    assert "the marker '<|im_start|>assistant\\n' was not found in them" in str(caught.value)


def test_over_long_rows_are_refused_or_left_out(build, chat) -> None:
    rows = [one_turn(i, "red", "Which? " * (60 if i in (1, 3) else 1)) for i in range(5)]
    folder = build(rows)
    longest = int(check(folder, chat).lengths.tokens.max())
    with pytest.raises(DataError) as caught:
        check(folder, chat, max_length=60)
    assert "2 of 5 rows are longer than --max-length 60 (rows 1, 3; the longest takes " in str(caught.value)
    assert f"takes {longest} tokens" in str(caught.value)
    assert "--over-long drop" in str(caught.value)
    checked = check(folder, chat, max_length=60, over_long="drop")
    assert (len(checked.rows), checked.dropped, checked.max_length) == (3, 2, 60)
    assert len(checked.lengths.tokens) == len(checked.lengths.supervised) == 3
    assert checked.lengths.tokens.max() <= 60
    assert [row["messages"][0]["content"][1]["text"] for row in checked.rows] == ["Which? "] * 3
    assert "2 over-long rows left out" in checked.describe()
    with pytest.raises(DataError, match="every row is longer than --max-length 5"):
        check(folder, chat, max_length=5, over_long="drop")


def test_many_rows_are_named_by_the_first_three(build, chat) -> None:
    with pytest.raises(DataError, match=r"5 of 5 rows .*\(rows 0, 1, 2, …; the longest"):
        check(build([one_turn(i, "red") for i in range(5)]), chat, max_length=10)


def test_an_empty_split_is_refused(build, chat) -> None:
    with pytest.raises(DataError, match="split 'val' has no rows"):
        check(build([one_turn(0, "red")], val=[]), chat, split="val")


ENDLESS = "{% for m in messages %}### {{ m.role }}:\n{% for p in m.content %}"
ENDLESS += "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}\n{% endfor %}"


def test_answers_that_nothing_ends_are_refused(colours, chat_of) -> None:
    processor = copy(chat_of("llava-1.5").processor)
    processor.chat_template = ENDLESS
    chat = read_chat_format(
        processor, family_markers=None, instruction_part="### user:\n", response_part="### assistant:\n"
    )
    with pytest.raises(DataError) as caught:
        check(colours, chat, "llava-1.5")
    words = str(caught.value)
    assert "in 24 of 24 rows no token ends the answer" in words
    assert "would never learn to stop: generation stops at '</s>'" in words
    assert "the model's chat template writes none of these behind an answer" in words


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("llava-1.5", "text before an image in a turn: the template of LLaVA 1.5 would move the image to the front"),
        ("llama3.2-vision", "text before an image in a turn: in Llama 3.2 Vision it never attends to that image"),
    ],
)
def test_rows_that_the_family_cannot_represent_are_refused(family, words, build, chat_of) -> None:
    rows = [
        make_conversation(0, [turn("user", None, "Which?"), turn("assistant", "red")], [(56, 56)]),
        make_conversation(1, [turn("user", "Left", None), turn("assistant", "red")], [(56, 56)]),
        make_conversation(2, [turn("user", "Left", None, "right", None), turn("assistant", "red")], [(56, 56)] * 2),
    ]
    folder = build(rows)
    with pytest.raises(DataError) as caught:
        check(folder, chat_of(family), family)
    assert str(caught.value).startswith(f"train: 2 rows (rows 1, 2) have {words}; build the set so that images come")
    # others show images where they stand
    check(folder, chat_of("gemma3"), "gemma3")


def test_a_system_turn_beside_an_image_is_the_templates_to_refuse(build, chat_of) -> None:
    messages = [turn("system", "Be brief."), turn("user", None, "Which?"), turn("assistant", "red")]
    folder = build([make_conversation(0, messages, [(56, 56)])])
    with pytest.raises(DataError, match=r"row 0: the model's chat template refuses a conversation: .*system messages"):
        check(folder, chat_of("llama3.2-vision"), "llama3.2-vision")
    # newer templates of the family take it
    rows = FamilyRows(FAMILIES["llama3.2-vision"])
    rows.look_at(0, messages)
    rows.require_none("train")


def test_padding_with_the_end_token_is_refused(colours, chat_of) -> None:
    processor = deepcopy(chat_of("qwen2.5-vl").processor)
    processor.tokenizer.pad_token = "<|im_end|>"
    chat = read_chat_format(processor, family_markers=None)
    with pytest.raises(DataError) as caught:
        check(colours, chat)
    assert "in 24 of 24 rows no token ends the answer" in str(caught.value)
    assert "generation stops at '<|im_end|>', which is also the padding token" in str(caught.value)


def test_a_turn_that_melts_into_its_marker_is_refused(tmp_path, chat) -> None:
    # as in the vocabulary of the real model
    processor = deepcopy(chat.processor)
    processor.tokenizer.add_tokens(["\n\n"])
    chat = read_chat_format(processor, family_markers=chat.markers)
    several = [turn("user", None, "Which?"), turn("assistant", "\nred")]
    several += [turn("user", "Sure?"), turn("assistant", "Yes.")]
    rows = [one_turn(0, "red"), one_turn(1, "red"), make_conversation(2, several, [(56, 56)])]
    with pytest.raises(DataError, match="another number of answers than there are assistant turns") as caught:
        check(write_folder(tmp_path / "several", {"train": rows}), chat)
    assert "in 1 of 3 rows" in str(caught.value)
    assert "(rows 2): a turn begins with a line break that melts into the marker" in str(caught.value)
    rows[1] = one_turn(1, "\nred")
    with pytest.raises(DataError, match=r"1 of 3 rows have no token that carries loss \(rows 1\)"):
        check(write_folder(tmp_path / "one", {"train": rows}), chat)


def test_the_collator_is_held_to_what_was_foreseen(colours, chat) -> None:
    checked = check(colours, chat)
    collate = VisionCollator(chat, dtype=torch.float32)
    check_collator(collate, checked, chat, last_turn_only=False)

    def cut(rows):
        return {name: value[:, :20] for name, value in collate(rows).items() if name in ("input_ids", "labels")}

    with pytest.raises(ConfigError, match=r"row 0 of train: the collator makes 20 tokens of it, \d+ were foreseen"):
        check_collator(cut, checked, chat, last_turn_only=False)

    def learn_everything(rows):
        batch = collate(rows)
        return batch | {"labels": batch["input_ids"].clone()}

    with pytest.raises(ConfigError, match=r"loss on other tokens than the answers \(\d+ differ\)"):
        check_collator(learn_everything, checked, chat, last_turn_only=False)
    # the first row has two answers
    with pytest.raises(ConfigError, match="loss on other tokens"):
        check_collator(collate, checked, chat, last_turn_only=True)


def test_the_longest_row_goes_through_the_collator(build, chat) -> None:
    rows = [one_turn(i, "red", "Which? " * (1 + 30 * (i == 9))) for i in range(12)]
    checked = check(build(rows), chat)
    seen = []
    collate = VisionCollator(chat, dtype=torch.float32)

    def note(rows):
        batch = collate(rows)
        seen.append(batch["input_ids"].shape[1])
        return batch

    check_collator(note, checked, chat, last_turn_only=False)
    assert max(seen) == checked.max_length
    assert len(seen) == 5


def test_a_masked_row_for_the_eye(build, chat) -> None:
    several = [turn("user", None, None, "Which?"), turn("assistant", "red")]
    several += [turn("user", "Sure?"), turn("assistant", "Yes.")]
    checked = check(build([make_conversation(0, several, [(56, 56), (84, 56)])]), chat)
    batch = VisionCollator(chat, dtype=torch.float32)([checked.rows[0]])
    shown = show_masked_row(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), chat)
    assert shown == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|>×4<|vision_end|><|vision_start|><|image_pad|>×6<|vision_end|>Which?<|im_end|>\n"
        "<|im_start|>assistant\n⟦red<|im_end|>⟧\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n"
    )


def test_a_masked_row_that_ends_with_what_is_learned(chat_of) -> None:
    chat = chat_of("pixtral")
    ids = chat.processor.tokenizer("<s>[INST]Which?[/INST]red</s>", add_special_tokens=False)["input_ids"]
    labels = [-100] * (len(ids) - 2) + ids[-2:]
    assert show_masked_row(ids, labels, chat) == "<s>[INST]Which?[/INST]⟦red</s>⟧"


def test_sizes_that_the_processor_changes_are_told(build, chat_of) -> None:
    sizes = [(60, 60), (60, 60), (56, 84), (500, 100)]
    turns = [turn("user", None, "Which?"), turn("assistant", "red")]
    folder = build([make_conversation(index, turns, [size]) for index, size in enumerate(sizes)])
    words = check(folder, chat_of("qwen2.5-vl")).describe()
    assert "3 of 4 pictures are rounded to multiples of 28 px by the processor" in words
    assert "(2 from 60x60 to 56x56, 1 from 500x100 to 504x112 px)" in words
    words = check(folder, chat_of("gemma3"), "gemma3").describe()
    assert words.count("from 60x60 to ") == 1
    assert "4 of 4 pictures are stretched to 896x896 px" in words


def test_a_text_that_spells_the_image_token_is_refused(build, chat) -> None:
    rows = [one_turn(0, "red"), one_turn(1, "red", question="What is <|image_pad|>?")]
    with pytest.raises(
        DataError, match=r"in 1 of 2 rows \(rows 1\) the rendered text holds more or fewer image placeh"
    ):
        check(build(rows), chat)


def test_lengths_that_the_processor_does_not_make_are_refused(build, chat, monkeypatch) -> None:
    from vlmtrain.image_tokens import ImageTokenCounter

    count = ImageTokenCounter.__call__
    monkeypatch.setattr(ImageTokenCounter, "__call__", lambda self, *size: count(self, *size) + 1)
    with pytest.raises(ConfigError, match=r"row 0 of train: the processor makes \d+ tokens of it, \d+ were foreseen"):
        check(build([one_turn(0, "red")]), chat)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((9, 0), torch.bfloat16)])
def test_what_an_old_gpu_changes_is_said(monkeypatch, capability, dtype) -> None:
    from vlmtrain.device import describe_limits, half_precision

    assert describe_limits("gemma3") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert half_precision() == dtype
    words = " ".join(describe_limits("gemma3"))
    assert ("float16 with loss scaling in place of bfloat16" in words) == (capability < (8, 0))
    assert ("--load-in 32bit" in words) == (capability < (8, 0))


def test_several_processes_measure_the_same(colours, chat) -> None:
    from vlmtrain.lengths import measure_lengths

    split = open_folder(colours).split("train")
    one, four = (measure_lengths(split, chat, FAMILIES["qwen2.5-vl"], processes=count) for count in (1, 4))
    for field in dataclasses.fields(one):
        assert getattr(one, field.name).tolist() == getattr(four, field.name).tolist()
