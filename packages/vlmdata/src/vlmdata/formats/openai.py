"""OpenAI's fine-tuning files: `messages` whose parts of type `image_url` carry a URL or a data URI."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.parts import attach_images, iterate_parts, read_messages
from vlmdata.formats.reading import Reading
from vlmdata.sample import Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "openai"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows with a content part of type `image_url`."""
    return any(part.get("type") == "image_url" for part in iterate_parts(rows))


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images stand in the messages; a column of images is only read where an option names it.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "messages", (), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the messages; a row whose answers are not all meant for training is rejected."""
    draft = read_messages(row.get("messages"), "messages")
    if isinstance(draft, Problem):
        return draft
    if any(message.get("weight") == 0 for message in row["messages"]):
        return Problem("untrained_turn", "a message has weight 0; every answer of a row is trained on")
    return attach_images(draft, row, reading)
