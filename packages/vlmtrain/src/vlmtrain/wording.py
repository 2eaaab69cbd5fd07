"""Pieces of messages that several modules write alike."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

__all__ = ["list_some", "shorten"]

_EXAMPLES = 3


def list_some(values: Iterable[object], most: int = _EXAMPLES) -> str:
    """The first values with commas between, and an ellipsis where there are more: `0, 1, 2, …`."""
    shown = [str(value) for value in islice(values, most + 1)]
    return ", ".join([*shown[:most], "…"] if len(shown) > most else shown)


def shorten(text: str, length: int) -> str:
    """A text of at most `length` characters, the last of them an ellipsis where some are left out."""
    return text if len(text) <= length else text[: length - 1] + "…"
