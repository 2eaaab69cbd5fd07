"""ms-swift's `query`, `response` and `history`, with `images` beside them or `<img>…</img>` in the texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.pairs import make_pair, read_history, read_system
from vlmdata.formats.parts import attach_images
from vlmdata.formats.reading import Reading
from vlmdata.sample import ImageRef, Message, Part, Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "swift"

# Qwen-VL's own tag, and the number that its tools write before it. No path has a `<`, and without one in the pattern
# the search takes no longer than the text is long, whatever it holds.
_INLINE = re.compile(r"(?:Picture \d{1,9}: ?)?<img>([^<]*+)</img>\n?")
_MARKS = ("history", "images", "system")


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows with `query` and `response`, and with a mark of ms-swift: history, images, system or an inline image."""
    return any(
        {"query", "response"} <= row.keys()
        and (
            any(mark in row for mark in _MARKS)
            or (isinstance(query := row["query"], str) and _INLINE.search(query) is not None)
        )
        for row in rows
    )


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`, or stand in the texts.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "query + response", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Put history, query and response in order, and take the inline images out of the texts."""
    messages: list[Message] = []
    for turns in (
        read_system(row.get("system")),
        read_history(row.get("history")),
        make_pair(row.get("query"), row.get("response"), ("query", "response")),
    ):
        if isinstance(turns, Problem):
            return turns
        messages.extend(turns)
    draft = Draft(messages)
    for message in messages:
        if message.role == "user":
            _take_images_out(message, draft.images)
    return attach_images(draft, row, reading)


def _take_images_out(message: Message, images: list[ImageRef]) -> None:
    parts: list[Part] = []
    for part in message.content:
        if part.text is None:
            parts.append(part)
            continue
        # a pattern with one group: texts and, between them, what the tags name
        for i, piece in enumerate(_INLINE.split(part.text)):
            if i % 2:
                images.append(ImageRef(location=piece.strip()))
                parts.append(Part("image"))
            elif piece.strip():
                parts.append(Part("text", piece))
    message.content = parts
