"""Chat templates that leave out the ends of a sequence, completed: training, answering and exports see the same text.

LLaVA's templates leave the beginning of the sequence to the tokenizer, and that of LLaVA 1.5 ends no answer, from which
a model never learns to stop. Here texts are tokenised as the template renders them, nothing added; so what is missing
goes into the template, and with it into every export.
"""

from __future__ import annotations

from typing import Any

from vlmtrain.template_probe import PROBE_ANSWER, apply_template, probe_conversation, takes_only_text

__all__ = ["complete_template", "describe_completion"]

_BEGIN_SEQUENCE = (
    "{#- The beginning of the sequence, which this template leaves to the tokenizer. -#}{{- bos_token -}}\n"
)
# `messages` again, with the end token behind each of the assistant's texts; the model's own template follows.
_END_ANSWERS = """\
{#- Each answer with the token that ends it, which this template leaves out. -#}
{%- set ended = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' and message.content is string -%}
        {%- set message = dict(message, content=message.content + eos_token) -%}
    {%- elif message.role == 'assistant' -%}
        {%- set last = message.content[-1] -%}
        {%- set last = dict(last, text=last.text + eos_token) -%}
        {%- set message = dict(message, content=message.content[:-1] + [last]) -%}
    {%- endif -%}
    {%- set ended.messages = ended.messages + [message] -%}
{%- endfor -%}
{%- set messages = ended.messages -%}
"""


def complete_template(processor: Any) -> None:
    """Adds to a processor's chat template what it leaves out at the ends; a whole one stays as it is.

    The beginning-of-sequence token goes in front where the tokenizer would write it by itself and the template does
    not. The end-of-sequence token goes behind each answer where the template writes no special token there.

    Args:
        processor: A transformers processor; without a template, or with several, nothing is done.

    Raises:
        ConfigError: The template drops the assistant's answers.
    """
    template = getattr(processor, "chat_template", None)
    tokenizer = getattr(processor, "tokenizer", None)
    if not isinstance(template, str) or tokenizer is None:
        return
    conversation = probe_conversation(text_only=takes_only_text(processor))
    text = apply_template(processor, conversation, add_generation_prompt=False)
    behind_answer = text.rpartition(PROBE_ANSWER)[2]
    if tokenizer.eos_token and not any(token in behind_answer for token in tokenizer.all_special_tokens):
        template = _END_ANSWERS + template
    begins = tokenizer.bos_token and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    if begins and not text.lstrip().startswith(tokenizer.bos_token):
        template = _BEGIN_SEQUENCE + template
    processor.chat_template = template


def describe_completion(processor: Any) -> str | None:
    """What was added to a processor's template, in words, or None."""
    template, tokenizer = processor.chat_template, processor.tokenizer
    added = []
    if _BEGIN_SEQUENCE in template:
        added.append(f"{tokenizer.bos_token!r} in front")
    if _END_ANSWERS in template:
        added.append(f"{tokenizer.eos_token!r} behind each answer, so that the model learns to stop")
    if not added:
        return None
    return f"added to the model's chat template, and saved with it: {' and '.join(added)}"
