"""LLaVA's and Qwen-VL's `conversations`: `{from: human|gpt, value}` with `<image>` placeholders in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation, read_role, split_placeholders
from vlmdata.formats.parts import attach_images
from vlmdata.formats.reading import Reading
from vlmdata.sample import Message, Problem, RawRow

__all__ = ["NAME", "convert", "detect", "is_turn_list", "plan", "read_turns"]

NAME = "llava"


def is_turn_list(value: Any) -> bool:
    """Tell whether a value is a non-empty list of objects that each have `from` and `value`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in value)
    )


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows whose `conversations` are dictionaries with `from` and `value`."""
    return any(is_turn_list(row.get("conversations")) for row in rows)


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `image` or `images`.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "conversations", ("image", "images"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the turns, and match their placeholders with the row's images; a row without images is text only."""
    draft = read_turns(row.get("conversations"), "conversations")
    return draft if isinstance(draft, Problem) else attach_images(draft, row, reading)


def read_turns(turns: Any, name: str) -> Draft | Problem:
    """Read a list of `{from, value}`."""
    if not isinstance(turns, list) or not turns:
        return Problem("no_messages", f"{name!r} is empty or no list")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return Problem("bad_message", "a turn is not an object with 'from' and a text as 'value'")
        role = read_role(turn.get("from"))
        if isinstance(role, Problem):
            return role
        messages.append(Message(role, split_placeholders(turn["value"])))
    return Draft(messages)
