"""A made-up conversation through a model's chat template, to see what the template does with one."""

from __future__ import annotations

from typing import Any

from vlmdata.errors import ConfigError

__all__ = ["PROBE_ANSWER", "PROBE_QUESTION", "apply_template", "probe_conversation", "takes_only_text"]

PROBE_QUESTION = "probe-question-5e1"
"""Text of the user's turns."""
PROBE_ANSWER = "probe-answer-7c2"
"""Text of the assistant's."""


def probe_conversation(*, text_only: bool) -> list[dict[str, Any]]:
    """Two questions, each with its answer.

    Args:
        text_only: Give the assistant's content as one string, not as a list of parts.
    """

    def turn(role: str, text: str) -> dict[str, Any]:
        as_string = text_only and role == "assistant"
        return {"role": role, "content": text if as_string else [{"type": "text", "text": text}]}

    return [
        turn("user", PROBE_QUESTION),
        turn("assistant", PROBE_ANSWER),
        turn("user", PROBE_QUESTION),
        turn("assistant", PROBE_ANSWER),
    ]


def takes_only_text(processor: Any) -> bool:
    """Whether the template drops, refuses or misprints an assistant's list of parts.

    Raises:
        ConfigError: It drops the assistant's text in either form.
    """
    # Templates are programs of their own, and one that cannot take the list form raises whatever its author chose;
    # the string form is then tried, and what that raises is not caught.
    try:
        text = apply_template(processor, probe_conversation(text_only=False), add_generation_prompt=False)
    except Exception:
        text = ""
    # A template that prints the Python list shows its quoted key.
    if text.count(PROBE_ANSWER) == 2 and "'type'" not in text:
        return False
    text = apply_template(processor, probe_conversation(text_only=True), add_generation_prompt=False)
    if text.count(PROBE_ANSWER) != 2:
        raise ConfigError(f"the model's chat template drops the assistant's answers: it renders {text!r}")
    return True


def apply_template(processor: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
    """The text that a processor's template renders."""
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
