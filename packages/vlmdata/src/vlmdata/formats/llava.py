"""LLaVA's and Qwen-VL's `conversations`: `{from: human|gpt, value}` with `<image>` placeholders in the text."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import (
    Draft,
    find_images,
    place_images,
    plan_conversation,
    read_role,
    split_placeholders,
)
from vlmdata.formats.reading import Reading
from vlmdata.sample import Message, Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "llava"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows whose `conversations` are dictionaries with `from` and `value`."""
    return any(
        isinstance(turns := row.get("conversations"), list)
        and bool(turns)
        and all(isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in turns)
        for row in rows
    )


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `image` or `images`.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "conversations", ("image", "images"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the turns, and match their placeholders with the row's images; a row without images is text only."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return Problem("no_messages", "'conversations' is empty or no list")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return Problem("bad_message", "a turn is not an object with 'from' and a text as 'value'")
        role = read_role(turn.get("from"))
        if isinstance(role, Problem):
            return role
        messages.append(Message(role, split_placeholders(turn["value"])))
    images = find_images(row, reading.image)
    if isinstance(images, Problem):
        return images
    if problem := place_images(messages, len(images)):
        return problem
    return Draft(messages, images)
