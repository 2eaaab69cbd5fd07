"""Axolotl's multimodal sets: `messages` whose image parts carry a `path`, `url`, `base64` or `image`."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.parts import attach_images, iterate_parts, read_messages
from vlmdata.formats.reading import Reading
from vlmdata.sample import Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "axolotl"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows with a part of type `image` that carries the image itself."""
    keys = ("path", "url", "base64", "image")
    return any(part.get("type") == "image" and any(part.get(key) for key in keys) for part in iterate_parts(rows))


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images stand in the messages; those of a column are for rows whose parts carry none.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "messages", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the messages with the images of their parts."""
    draft = read_messages(row.get("messages"), "messages")
    return draft if isinstance(draft, Problem) else attach_images(draft, row, reading)
