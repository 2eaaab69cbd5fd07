"""FineVision's (and the Cauldron's) `texts`: pairs of user and assistant about the images of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.pairs import make_pair
from vlmdata.formats.parts import attach_images
from vlmdata.formats.reading import Reading
from vlmdata.sample import Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "finevision"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows whose `texts` are dictionaries with `user` and `assistant`."""
    return any(
        isinstance(texts := row.get("texts"), list)
        and bool(texts)
        and all(isinstance(pair, dict) and {"user", "assistant"} <= pair.keys() for pair in texts)
        for row in rows
    )


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "texts", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Make one conversation of all pairs, with the images before the first question."""
    texts: Any = row.get("texts")
    if not isinstance(texts, list) or not texts:
        return Problem("no_messages", "'texts' is empty or no list")
    draft = Draft([])
    for pair in texts:
        if not isinstance(pair, dict):
            return Problem("bad_message", f"'texts' holds a {type(pair).__name__}, not user and assistant")
        turns = make_pair(pair.get("user"), pair.get("assistant"), ("user", "assistant"))
        if isinstance(turns, Problem):
            return turns
        draft.messages.extend(turns)
    return attach_images(draft, row, reading)
