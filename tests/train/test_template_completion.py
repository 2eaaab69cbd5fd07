"""Templates that leave out the ends of a sequence: what is added, to which, and that exports keep it."""

from __future__ import annotations

import pytest
from transformers import AutoProcessor

from vlmdata.families import FAMILIES
from vlmtrain.chat import read_chat_format
from vlmtrain.processors import load_processor, save_processor
from vlmtrain.source import find_model
from vlmtrain.template_completion import complete_template, describe_completion

CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "7"}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
]
COMPLETED = {
    # the original model was trained on "USER: … ASSISTANT: …</s>USER: …", begun with <s>
    "llava-1.5": "<s>USER: <image>\nWhich digit? ASSISTANT: 7</s> USER: Sure? ASSISTANT: Yes.</s> ",
    "llava-1.6": "<s>[INST] <image>\nWhich digit? [/INST] 7</s> [INST] Sure? [/INST] Yes.</s> ",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_missing_is_added_and_nothing_else(name, tiny) -> None:
    as_it_came = AutoProcessor.from_pretrained(tiny(name))
    processor = load_processor(find_model(str(tiny(name))))
    assert (processor.chat_template != as_it_came.chat_template) == (name in COMPLETED)
    text = processor.apply_chat_template(CHAT, tokenize=False)
    if name in COMPLETED:
        assert text == COMPLETED[name]
    # a text begins as the tokenizer alone begins it
    ids, alone = processor.tokenizer([text, "x"], add_special_tokens=False)["input_ids"]
    begun = processor.tokenizer("x")["input_ids"]
    assert ids[: len(begun) - len(alone)] == begun[: len(begun) - len(alone)]
    prompt = processor.apply_chat_template(CHAT[:3], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt.rstrip())


def test_what_was_added_is_said_and_saved(tiny, tmp_path) -> None:
    source = find_model(str(tiny("llava-1.5")))
    save_processor(source, tmp_path)
    exported = AutoProcessor.from_pretrained(tmp_path)
    assert exported.apply_chat_template(CHAT, tokenize=False) == COMPLETED["llava-1.5"]
    # transformers leaves its own beginning out where the template wrote one
    ids = exported.apply_chat_template(CHAT[2:], tokenize=True, return_dict=True)["input_ids"][0]
    assert ids.count(exported.tokenizer.bos_token_id) == 1
    assert ids.count(exported.tokenizer.eos_token_id) == 1
    before = exported.chat_template
    complete_template(exported)
    assert exported.chat_template == before
    assert describe_completion(exported) == (
        "added to the model's chat template, and saved with it: '<s>' in front and '</s>' behind each answer, "
        "so that the model learns to stop"
    )
    assert describe_completion(AutoProcessor.from_pretrained(tiny("gemma3"))) is None


@pytest.mark.parametrize("answer", ["{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}"])
def test_a_template_of_an_unknown_model_is_completed_in_either_form(answer, chat_of) -> None:
    processor = AutoProcessor.from_pretrained(chat_of("llava-1.5").processor.tokenizer.name_or_path)
    user = "{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
    processor.chat_template = (
        "{% for m in messages %}### {{ m.role }}: {% if m.role == 'user' %}"
        + user
        + "{% else %}"
        + answer
        + "{% endif %}{% endfor %}"
    )
    complete_template(processor)
    chat = read_chat_format(
        processor, family_markers=None, instruction_part="### user:", response_part="### assistant:"
    )
    expected = "<s>### user: <image>Which digit?### assistant: 7</s>"
    assert chat.render(CHAT[:2]) == expected


def test_without_an_end_token_nothing_is_added(chat_of) -> None:
    processor = AutoProcessor.from_pretrained(chat_of("llava-1.5").processor.tokenizer.name_or_path)
    processor.tokenizer.eos_token = None
    complete_template(processor)
    assert "eos_token" not in processor.chat_template
