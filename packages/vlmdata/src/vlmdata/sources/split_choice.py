"""The split of a Hugging Face set that `--source-split` names, with its slice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vlmdata.errors import ConfigError
from vlmdata.sources.rows import IndexedRow

__all__ = ["choose_split", "slice_rows"]

_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<begin>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


def choose_split(wanted: str | None, available: Sequence[str], where: str) -> tuple[str, str | None, str | None]:
    """Return the name of the split to read, and the two ends of its slice as they were written.

    Without a wish it is the only split there is, or `train`.

    Raises:
        ConfigError: there is no such split, or it is not clear which one is meant.
    """
    listed = ", ".join(map(repr, available))
    if wanted is None:
        if len(available) == 1:
            return available[0], None, None
        if "train" in available:
            return "train", None, None
        raise ConfigError(f"{where}: name one of its splits with --source-split: {listed}")
    match = _SPLIT.fullmatch(wanted)
    if match is None:
        raise ConfigError(f"source_split must look like train, train[:100] or test[10%:], not {wanted!r}")
    if match["name"] not in available:
        raise ConfigError(f"{where}: no split {match['name']!r}; it has {listed}")
    return match["name"], match["begin"], match["end"]


def slice_rows(rows: Iterator[IndexedRow], begin: str | None, end: str | None, total: int) -> Iterator[IndexedRow]:
    """Yield the rows of a slice as `datasets` counts it: whole rows or percents, from the end if negative."""
    first, last = _position(begin, total, 0), _position(end, total, total)
    for index, row in rows:
        if index >= last:
            return
        if index >= first:
            yield index, row


def _position(text: str | None, total: int, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * total / 100) if text.endswith("%") else int(text)
    return max(0, min(total, value + total if value < 0 else value))
