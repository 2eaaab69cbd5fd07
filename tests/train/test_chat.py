"""Markers and templates: those of the families, of models nobody described, and wrong ones."""

from __future__ import annotations

from copy import copy

import pytest

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import FAMILIES
from vlmtrain.chat import Markers, clean_messages, read_chat_format

CHAT = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which digit?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
]


def markers_of(name: str) -> Markers:
    family = FAMILIES[name]
    return Markers(instruction_part=family.instruction_part, response_part=family.response_part)


@pytest.mark.parametrize("name", FAMILIES)
def test_markers_read_off_the_template_are_the_familys(name, chat_of) -> None:
    processor = chat_of(name).processor
    derived = read_chat_format(processor, family_markers=None)
    described = read_chat_format(processor, family_markers=markers_of(name))
    assert (derived.markers, derived.rules) == (described.markers, described.rules)
    blank = " " if name == "llava-1.6" else ""
    assert derived.markers.instruction_part == blank + FAMILIES[name].instruction_part
    assert derived.markers.response_part == blank + FAMILIES[name].response_part


@pytest.mark.parametrize("name", FAMILIES)
def test_the_markers_tokens_stand_in_a_rendered_chat(name, chat_of) -> None:
    chat = chat_of(name)
    ids = chat.processor.tokenizer(chat.render([*CHAT, *CHAT]), add_special_tokens=False)["input_ids"]

    def count(pattern: tuple[int, ...]) -> int:
        return sum(tuple(ids[i : i + len(pattern)]) == pattern for i in range(len(ids)))

    assert count(chat.rules.response_ids) == 2
    # a user's first turn may stand at the very beginning, where no blank melts with its marker
    assert count(chat.rules.instruction_ids) in (1, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_stops_are_those_of_the_generation_config(name, chat_of) -> None:
    chat = chat_of(name)
    assert set(chat.processor.tokenizer.convert_ids_to_tokens(sorted(chat.stop_ids))) == set(FAMILIES[name].stop_tokens)


def test_without_a_generation_config_the_tokenizers_end_stops(chat_of) -> None:
    chat = read_chat_format(chat_of("qwen2.5-vl").processor, family_markers=None)
    assert chat.stop_ids == {chat.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_own_markers_win_and_a_shells_line_breaks_are_read(chat_of) -> None:
    processor = chat_of("qwen2.5-vl").processor
    chat = read_chat_format(
        processor,
        family_markers=markers_of("gemma3"),
        instruction_part="<|im_start|>user\\n",
        response_part="<|im_start|>assistant\\n",
    )
    assert chat.markers == markers_of("qwen2.5-vl")


def test_wrong_markers_are_named_with_what_the_template_renders(chat_of) -> None:
    processor = chat_of("qwen2.5-vl").processor
    with pytest.raises(ConfigError) as caught:
        read_chat_format(processor, family_markers=None, instruction_part="### User:", response_part="### Assistant:")
    user, assistant = caught.value.problems
    assert "the user's marker '### User:' does not occur" in user
    assert "pass --instruction-part" in user
    assert "<|im_start|>user\\n" in user
    assert "the assistant's marker '### Assistant:' does not occur" in assistant
    assert "pass --response-part" in assistant


def test_one_marker_alone_is_refused(chat_of) -> None:
    with pytest.raises(ConfigError, match="go together"):
        read_chat_format(chat_of("gemma3").processor, family_markers=None, response_part="<start_of_turn>model\n")


def test_a_marker_of_other_tokens_than_in_the_chat_is_refused(chat_of) -> None:
    processor = chat_of("qwen2.5-vl").processor
    tokenizer = processor.tokenizer
    # alone it begins in the middle of a word's token
    part = "rt|>assistant\n"
    assert "<|im_sta" + part == FAMILIES["qwen2.5-vl"].response_part
    with pytest.raises(ConfigError, match="as other tokens than alone: pass --response-part"):
        read_chat_format(processor, family_markers=None, instruction_part="<|im_start|>user\n", response_part=part)
    assert tokenizer(part)["input_ids"]


def with_template(processor, template: str | None):
    changed = copy(processor)
    changed.chat_template = template
    return changed


def test_a_processor_without_template_is_refused(chat_of) -> None:
    with pytest.raises(ConfigError, match="no chat template; use the instruction-tuned variant"):
        read_chat_format(with_template(chat_of("gemma3").processor, None), family_markers=None)


def test_a_bare_tokenizer_is_refused(chat_of) -> None:
    with pytest.raises(ConfigError, match="a bare tokenizer cannot take pictures"):
        read_chat_format(chat_of("gemma3").processor.tokenizer, family_markers=None)


USER_PARTS = "[INST]{% for p in m.content %}{{ '[IMG]' if p.type == 'image' else p.text }}{% endfor %}[/INST]"
TURNS = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}" + USER_PARTS + "{% else %}ANSWER{% endif %}"
TURNS += "{% endfor %}"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("{{ m.content + eos_token }}", id="refuses a list"),
        pytest.param("{{ m.content }}{{ eos_token }}", id="prints a list"),
        pytest.param("{% if m.content is string %}{{ m.content }}{% endif %}{{ eos_token }}", id="drops a list"),
    ],
)
def test_a_template_that_takes_an_assistants_text_as_one_string(answer, chat_of) -> None:
    processor = with_template(chat_of("pixtral").processor, TURNS.replace("ANSWER", answer))
    chat = read_chat_format(processor, family_markers=None)
    assert chat.assistant_text_only
    assert chat.markers == markers_of("pixtral")
    parts = [{"type": "text", "text": "se"}, {"type": "text", "text": "ven"}]
    assert (
        chat.render([CHAT[0], {"role": "assistant", "content": parts}]) == "<s>[INST][IMG]Which digit?[/INST]seven</s>"
    )


def test_a_template_that_drops_answers_is_refused(chat_of) -> None:
    processor = with_template(chat_of("pixtral").processor, TURNS.replace("ANSWER", "{{ eos_token }}"))
    with pytest.raises(ConfigError, match="drops the assistant's answers"):
        read_chat_format(processor, family_markers=markers_of("pixtral"))


def test_a_template_whose_turns_look_alike_asks_for_markers(chat_of) -> None:
    plain = "{% for m in messages %}{{ m.content[0].text }}{{ eos_token }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not show how it opens a turn: pass --instruction-part and --response"):
        read_chat_format(with_template(chat_of("pixtral").processor, plain), family_markers=None)


def test_what_a_template_refuses_is_said_in_words(chat_of) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    with pytest.raises(DataError, match=r"refuses a conversation: .*incompatible with system messages"):
        chat_of("llama3.2-vision").render([system, *CHAT])


def test_null_fields_of_stored_parts_are_left_out() -> None:
    cleaned = clean_messages(CHAT, assistant_text_only=False)
    assert cleaned[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Which digit?"}]
    assert clean_messages(CHAT, assistant_text_only=True)[1] == {"role": "assistant", "content": "7"}


def test_a_request_ends_where_the_answer_begins(chat_of) -> None:
    for name, family in FAMILIES.items():
        prompt = chat_of(name).render(CHAT[:1], add_generation_prompt=True)
        assert prompt.rstrip().endswith(family.response_part.rstrip())
        assert chat_of(name).render(CHAT).startswith(prompt)
