"""TRL's prompt and completion: each a text or a list of messages, with `images` (or `image`) beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation, split_placeholders
from vlmdata.formats.parts import attach_images, read_messages
from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import as_text
from vlmdata.sample import Message, Problem, RawRow, Role

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "trl"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows with both a `prompt` and a `completion`."""
    return any({"prompt", "completion"} <= row.keys() for row in rows)


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`, or stand in the messages themselves.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "prompt + completion", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Join prompt and completion into one conversation; all turns of the assistant in it are trained on."""
    prompt = _read_side(row.get("prompt"), "prompt", "user")
    if isinstance(prompt, Problem):
        return prompt
    completion = _read_side(row.get("completion"), "completion", "assistant")
    if isinstance(completion, Problem):
        return completion
    draft = Draft(prompt.messages + completion.messages, prompt.images + completion.images)
    return attach_images(draft, row, reading)


def _read_side(value: Any, name: str, role: Role) -> Draft | Problem:
    if isinstance(value, list):
        return read_messages(value, name)
    text = as_text(value, name)
    return text if isinstance(text, Problem) else Draft([Message(role, split_placeholders(text))])
