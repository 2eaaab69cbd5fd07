"""Conversations written as pairs of what is asked and what is answered."""

from __future__ import annotations

from typing import Any

from vlmdata.formats.conversation import split_placeholders
from vlmdata.formats.templates import as_text
from vlmdata.sample import Message, Part, Problem

__all__ = ["make_pair", "read_history", "read_system"]


def make_pair(question: Any, answer: Any, names: tuple[str, str]) -> list[Message] | Problem:
    """Make a user's and an assistant's turn; `names` are those of the two values, for messages."""
    texts = []
    for value, name in zip((question, answer), names, strict=True):
        text = as_text(value, name)
        if isinstance(text, Problem):
            return text
        texts.append(text)
    return [Message("user", split_placeholders(texts[0])), Message("assistant", split_placeholders(texts[1]))]


def read_history(value: Any, name: str = "history") -> list[Message] | Problem:
    """Read the turns before the last: a list of [question, answer], where there is one."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        return Problem("bad_message", f"{name!r} is a {type(value).__name__}, not a list of pairs")
    messages: list[Message] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return Problem("bad_message", f"{name!r} holds something other than pairs of question and answer")
        turns = make_pair(pair[0], pair[1], (f"{name} question", f"{name} answer"))
        if isinstance(turns, Problem):
            return turns
        messages.extend(turns)
    return messages


def read_system(value: Any) -> list[Message] | Problem:
    """Return the turn of a `system` value, or none where it is empty."""
    text = as_text(value, "system")
    if isinstance(text, Problem):
        return [] if text.reason == "empty_text" else text
    return [Message("system", [Part("text", text)])]
