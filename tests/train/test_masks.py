"""Which tokens carry loss: on ids made by hand, against a regular expression, and on generated conversations."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmdata.families import FAMILIES
from vlmtrain.collator import VisionCollator
from vlmtrain.masks import IGNORE_INDEX, MaskRules, mask_labels, supervised_spans, unterminated_spans

BOS, OPEN, ASSISTANT, USER, STOP, PAD, IMAGE = 1, 10, 11, 12, 9, 0, 7
CHATML = MaskRules(
    response_ids=(OPEN, ASSISTANT),
    instruction_ids=(OPEN, USER),
    stop_ids=frozenset({STOP}),
    turn_ids=(OPEN,),
    never_ids=frozenset({PAD, IMAGE}),
    bos_id=BOS,
)
BRACKETS = MaskRules(
    response_ids=(4,),
    instruction_ids=(3,),
    stop_ids=frozenset({STOP}),
    turn_ids=(),
    never_ids=frozenset({PAD, IMAGE}),
    bos_id=BOS,
)


@pytest.mark.parametrize(
    ("rules", "ids", "learned"),
    [
        pytest.param(CHATML, [OPEN, USER, 5, STOP, OPEN, ASSISTANT, 6, STOP], [6, 7], id="answer and its end"),
        pytest.param(CHATML, [OPEN, ASSISTANT, 6, STOP, 20, PAD, PAD], [2, 3], id="not what follows the end"),
        pytest.param(CHATML, [OPEN, ASSISTANT, STOP], [2], id="an empty answer learns its end"),
        pytest.param(CHATML, [OPEN, ASSISTANT, 6, IMAGE, PAD, 8, STOP], [2, 5, 6], id="no image or padding tokens"),
        pytest.param(CHATML, [OPEN, ASSISTANT, 6, OPEN, USER, 5, OPEN, ASSISTANT, 8], [2, 8], id="ended by a turn"),
        pytest.param(CHATML, [OPEN, ASSISTANT, 6, OPEN, 13, 5], [2], id="ended by a turn of a third role"),
        pytest.param(CHATML, [OPEN, ASSISTANT, 6, BOS, OPEN, USER, 5], [2], id="ended by the next sequence"),
        pytest.param(CHATML, [OPEN, ASSISTANT, 6, 5], [2, 3], id="ended by the row"),
        pytest.param(CHATML, [OPEN, ASSISTANT, ASSISTANT, USER, STOP], [2, 3, 4], id="role words inside an answer"),
        pytest.param(CHATML, [OPEN, USER, 5, STOP, OPEN], [], id="a marker cut short"),
        pytest.param(CHATML, [5, 6, STOP], [], id="no marker"),
        pytest.param(CHATML, [], [], id="nothing"),
        pytest.param(BRACKETS, [BOS, 3, 5, 4, 6, STOP, 3, 5, 4, 8, STOP], [4, 5, 9, 10], id="two bracket turns"),
        pytest.param(BRACKETS, [BOS, 3, 5, 4, 6, 3, 5, 4, 8], [4, 8], id="bracket turns without end"),
        pytest.param(BRACKETS, [4, 6, 4, 8, STOP], [1, 3, 4], id="an answer upon an answer"),
    ],
)
def test_answers_and_their_ends_carry_loss(rules: MaskRules, ids: list[int], learned: list[int]) -> None:
    expected = [token if i in learned else IGNORE_INDEX for i, token in enumerate(ids)]
    assert mask_labels(ids, rules) == expected


def test_last_turn_only() -> None:
    ids = [BOS, 3, 5, 4, 6, STOP, 3, 5, 4, 8, STOP]
    assert supervised_spans(ids, BRACKETS) == [(4, 6), (9, 11)]
    labels = mask_labels(ids, BRACKETS, last_turn_only=True)
    assert labels == [IGNORE_INDEX] * 9 + [8, STOP]


def test_padding_that_is_the_end_token_leaves_answers_endless() -> None:
    ids = [OPEN, USER, 5, STOP, OPEN, ASSISTANT, 6, STOP, OPEN, ASSISTANT, 8, STOP]
    assert unterminated_spans(ids, CHATML, [STOP]) == 0
    padded_with_end = MaskRules(
        response_ids=CHATML.response_ids,
        instruction_ids=CHATML.instruction_ids,
        stop_ids=CHATML.stop_ids,
        turn_ids=CHATML.turn_ids,
        never_ids=CHATML.never_ids | {STOP},
        bos_id=BOS,
    )
    assert unterminated_spans(ids, padded_with_end, [STOP]) == 2
    assert [label for label in mask_labels(ids, padded_with_end) if label != IGNORE_INDEX] == [6, 8]


def test_an_end_that_generation_does_not_stop_at_is_no_end() -> None:
    ids = [OPEN, ASSISTANT, 6, STOP, OPEN, ASSISTANT, 8]
    assert unterminated_spans(ids, CHATML, [99]) == 2
    assert unterminated_spans(ids, CHATML, [STOP, 99]) == 1


@given(st.lists(st.sampled_from([BOS, OPEN, ASSISTANT, USER, STOP, 5, 6]), max_size=30))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_spans_are_those_of_a_regular_expression(ids: list[int]) -> None:
    letters = {BOS: "b", OPEN: "o", ASSISTANT: "a", USER: "u", STOP: "s", 5: "x", 6: "y"}
    row = "".join(letters[token] for token in ids)
    # from behind the marker to the stop token, or to where the next turn or sequence opens
    found = [match.span(1) for match in re.finditer(r"oa([^bos]*s?)", row)]
    assert supervised_spans(ids, CHATML) == found


PLAIN_TEXT_MARKERS = {"llava-1.5", "llava-1.6"}
SYSTEM_FAMILIES = {"qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "ministral3"}
RESERVED = re.compile(r"<\|?\w*\|?>|\[/?[A-Z_]+\]|</s>")

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.sampled_from(
    ["7", "user\nWhat?", "assistant\n", "[INST", "/INST]", "<|im_end", "model", "a\n\nb", "图片", "ASSISTANT: no"]
)
# Templates trim what a turn begins and ends with; their own tokens are escaped when a folder is built.
texts = words.map(str.strip).filter(lambda word: word and not RESERVED.search(word))


@st.composite
def conversations(draw, *, system: bool):
    messages, images = [], 0
    if system and draw(st.booleans()):
        messages.append({"role": "system", "content": [{"type": "text", "text": draw(texts)}]})
    for number in range(draw(st.integers(1, 3))):
        # Llama's processor takes pictures in the first turn only, LLaVA's template moves them to the front.
        count = draw(st.integers(1, 2)) if number == 0 else 0
        images += count
        content = [{"type": "image", "text": None}] * count + [{"type": "text", "text": draw(texts)}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": draw(texts)}]})
    return messages, images


def check_answers_alone_are_learned(name, chat, messages, images):
    family = FAMILIES[name]
    # preflight refuses such rows: where markers are plain text, a text that holds one opens a turn
    said = [part["text"] or "" for message in messages for part in message["content"]]
    assume(name not in PLAIN_TEXT_MARKERS or not any(family.response_part in text for text in said))
    picture = Image.new("RGB", (56, 56))
    batch = VisionCollator(chat, dtype=torch.float32)([{"messages": messages, "images": [picture] * images}])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert (ids == labels)[labels != IGNORE_INDEX].all()
    pieces = []
    for previous, label in pairwise([IGNORE_INDEX, *labels.tolist()]):
        if label != IGNORE_INDEX:
            if previous == IGNORE_INDEX:
                pieces.append([])
            pieces[-1].append(label)
    # their templates write a blank behind the marker
    blank = " " if name in PLAIN_TEXT_MARKERS else ""
    answers = [m["content"][0]["text"] for m in messages if m["role"] == "assistant"]
    expected = [f"{blank}{answer}{family.stop_tokens[0]}" for answer in answers]
    # Qwen's tokenizers compose characters
    decoded = [chat.processor.tokenizer.decode(piece) for piece in pieces]
    assert [unicodedata.normalize("NFC", each) for each in decoded] == [
        unicodedata.normalize("NFC", each) for each in expected
    ]


GENERATED = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("name", FAMILIES)
def test_generated_conversations_learn_their_answers_alone(name, chat_of) -> None:
    chat = chat_of(name)

    @given(conversations(system=name in SYSTEM_FAMILIES))
    @settings(max_examples=100, **GENERATED)
    def check(conversation):
        check_answers_alone_are_learned(name, chat, *conversation)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_ten_thousand_generated_conversations(name, chat_of) -> None:
    chat = chat_of(name)

    @given(conversations(system=name in SYSTEM_FAMILIES))
    @settings(max_examples=1250, **GENERATED)
    def check(conversation):
        check_answers_alone_are_learned(name, chat, *conversation)

    check()
