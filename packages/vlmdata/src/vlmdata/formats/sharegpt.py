"""ShareGPT's `conversations`: `{from, value}` or `{role, content}`, or pairs of human and assistant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.llava import is_turn_list, read_turns
from vlmdata.formats.pairs import make_pair, read_system
from vlmdata.formats.parts import attach_images, is_message_list, read_messages
from vlmdata.formats.reading import Reading
from vlmdata.sample import Message, Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "sharegpt"

_COLUMNS = ("conversations", "conversation")


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows with such a list; with an `image` beside it, turns of `{from, value}` are LLaVA's."""
    if any(is_turn_list(row.get("conversations")) for row in rows):
        return not any("image" in row for row in rows)
    return any(
        is_message_list(turns := row.get(column)) or is_turn_list(turns) or _is_pair_list(turns)
        for row in rows
        for column in _COLUMNS
    )


def _is_pair_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(pair, dict) and {"human", "assistant"} <= pair.keys() for pair in value)
    )


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`.

    Raises:
        ConfigError: an option names no column.
    """
    column = next((name for name in _COLUMNS if name in columns), _COLUMNS[0])
    return plan_conversation(NAME, column, ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the turns in whichever way they are written, and match their placeholders with the row's images."""
    assert reading.messages is not None
    turns: Any = row.get(reading.messages)
    if _is_pair_list(turns):
        draft = _read_pairs(turns)
    elif is_message_list(turns):
        draft = read_messages(turns, reading.messages)
    else:
        draft = read_turns(turns, reading.messages)
    if isinstance(draft, Problem):
        return draft
    if draft.messages[0].role != "system":
        system = read_system(row.get("system"))
        if isinstance(system, Problem):
            return system
        draft.messages[:0] = system
    return attach_images(draft, row, reading)


def _read_pairs(pairs: list[dict[str, Any]]) -> Draft | Problem:
    messages: list[Message] = []
    for pair in pairs:
        turns = make_pair(pair["human"], pair["assistant"], ("human", "assistant"))
        if isinstance(turns, Problem):
            return turns
        messages.extend(turns)
    return Draft(messages)
