"""Rows above the limit made shorter: what goes, what stays, and what is said about it."""

from __future__ import annotations

import pytest

from made_rows import make_conversation, turn
from vlmdata.errors import DataError
from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.config import DataConfig
from vlmtrain.masks import IGNORE_INDEX, mask_labels
from vlmtrain.over_long import shorten_conversation
from vlmtrain.preflight import check_split


def words(messages) -> int:
    """A stand-in for tokens: words, and 10 for a picture."""
    parts = [part for message in messages for part in message["content"]]
    return sum(10 if part["type"] == "image" else len(part["text"].split()) for part in parts)


def test_whole_turns_go_before_words() -> None:
    conversation = [turn("user", None, "a b"), turn("assistant", "c d e"), turn("user", "f"), turn("assistant", "g h")]
    assert shorten_conversation(conversation, words, 18) == (conversation, False)
    assert shorten_conversation(conversation, words, 17) == (conversation[:2], False)
    shorter, cut = shorten_conversation(conversation, words, 14)
    assert (cut, shorter[0], shorter[1]["content"][0]["text"]) == (True, conversation[0], "c d")
    assert shorten_conversation(conversation, words, 12) is None
    # the turns that were given stay as they were
    assert conversation[1]["content"][0]["text"] == "c d e"


def test_a_picture_is_never_dropped_with_its_turn() -> None:
    conversation = [turn("user", "a"), turn("assistant", "b"), turn("user", None, "c"), turn("assistant", "d e")]
    shorter, cut = shorten_conversation(conversation, words, 14)
    assert cut
    assert [len(message["content"]) for message in shorter] == [1, 1, 2, 1]
    assert shorten_conversation(conversation, words, 12) is None


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "pixtral"])
def test_shortened_rows_fit_and_still_end(name, chat_of, build) -> None:
    chat, family = chat_of(name), FAMILIES[name]
    long_answer = "one two three four five six seven " * 12
    rows = [
        make_conversation(0, [turn("user", None, "Which?"), turn("assistant", "red")], [(56, 56)]),
        make_conversation(1, [turn("user", None, "Which?"), turn("assistant", long_answer)], [(56, 56)]),
        make_conversation(
            2,
            [
                *(turn("user", None, "Which?"), turn("assistant", "red")),
                *(turn("user", "Tell more."), turn("assistant", long_answer)),
            ],
            [(56, 56)],
        ),
    ]
    split = open_folder(build(rows)).split("train")
    config = DataConfig(data=split.paths[0].parent.parent)
    longest = check_split(split, config, chat, family).lengths
    limit = int(longest.image_tokens.max()) + 60
    checked = check_split(split, DataConfig(data=config.data, max_length=limit, over_long="truncate"), chat, family)
    assert (checked.shortened.by_turns, checked.shortened.by_words) == (1, 1)
    assert checked.lengths.tokens.max() <= limit
    assert checked.lengths.image_tokens.tolist() == longest.image_tokens.tolist()
    assert "in 1 the last answer is cut between two words and its end token kept" in checked.describe()
    assert len(checked.rows[2]["messages"]) == 2
    assert checked.rows[1]["images"][0].size == (56, 56)
    for row in checked.rows:
        ids = chat.processor(
            text=[chat.render(row["messages"])], images=[list(row["images"])], add_special_tokens=False
        )
        ids = [int(each) for each in ids["input_ids"][0]]
        learned = [label for label in mask_labels(ids, chat.rules) if label != IGNORE_INDEX]
        assert chat.stop_ids & set(learned[-2:])
    # one word more would not have fitted
    cut = checked.rows[1]["messages"][-1]["content"][0]["text"]
    assert long_answer.startswith(cut)
    assert limit - checked.lengths.tokens[1] < 12


def test_what_cannot_be_shortened_is_refused(chat_of, build) -> None:
    row = make_conversation(0, [turn("user", None, "Which?"), turn("assistant", "red")], [(56, 56)])
    folder = build([row])
    config = DataConfig(data=folder, max_length=8, over_long="truncate")
    with pytest.raises(DataError, match="pictures and questions alone take more than --max-length 8"):
        check_split(open_folder(folder).split("train"), config, chat_of("qwen2.5-vl"), FAMILIES["qwen2.5-vl"])
