"""Alpaca's `instruction`, `input` and `output`, with `system`, `history` and images where there are any."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.pairs import make_pair, read_history, read_system
from vlmdata.formats.parts import attach_images
from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import as_text
from vlmdata.sample import Message, Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "alpaca"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows with `instruction` and `output`, and with `input` or `history`, which column sets do not have."""
    return any({"instruction", "output"} <= row.keys() and ("input" in row or "history" in row) for row in rows)


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "instruction + input + output", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Ask the instruction with its input on the next lines, after the history."""
    question = join_question(row.get("instruction"), row.get("input"))
    if isinstance(question, Problem):
        return question
    messages: list[Message] = []
    for turns in (
        read_system(row.get("system")),
        read_history(row.get("history")),
        make_pair(question, row.get("output"), ("instruction", "output")),
    ):
        if isinstance(turns, Problem):
            return turns
        messages.extend(turns)
    return attach_images(Draft(messages), row, reading)


def join_question(instruction: object, extra: object) -> str | Problem:
    """Return what is asked: instruction and input, either of which may be empty."""
    texts = []
    for value, name in ((instruction, "instruction"), (extra, "input")):
        text = as_text(value, name)
        if not isinstance(text, Problem):
            texts.append(text)
        elif text.reason != "empty_text":
            return text
    return "\n".join(texts) or Problem("empty_text", "'instruction' and 'input' are empty")
