"""Conversations in a `messages` column: LLaMA-Factory's, ms-swift's, TRL's and our own, with the images beside them."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.parts import attach_images, is_message_list, read_messages
from vlmdata.formats.reading import Reading
from vlmdata.sample import Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "messages"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows whose `messages` are dictionaries with a role and content."""
    return any(is_message_list(row.get("messages")) for row in rows)


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`, or stand in the messages themselves.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "messages", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the messages, and match their image parts or `<image>` placeholders with the row's images."""
    draft = read_messages(row.get("messages"), "messages")
    return draft if isinstance(draft, Problem) else attach_images(draft, row, reading)
