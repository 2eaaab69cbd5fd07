"""The rows of a split as trl takes them: memory-mapped, pictures decoded when a row is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from vlmdata.errors import DataError
from vlmdata.shards import Split

__all__ = ["Rows", "count_pictures", "open_rows", "sample_indices", "turn_text"]

Rows = Any
"""A `datasets.Dataset` with columns `messages` and `images`."""


def open_rows(split: Split) -> Rows:
    """Maps the shards of a split into memory; no row is read or decoded here.

    Args:
        split: A split of a built folder.

    Returns:
        Rows `{messages, images}`, images as RGB PIL pictures once a row is read.

    Raises:
        DataError: The split is empty.
    """
    # trl and Unsloth accept nothing but a datasets.Dataset.
    from datasets import Dataset, concatenate_datasets

    if not split.num_rows:
        raise DataError(f"split {split.name!r} has no rows")
    shards = [Dataset.from_file(str(path)) for path in split.paths]
    return concatenate_datasets(shards).select_columns(["messages", "images"])


def turn_text(message: Mapping[str, Any]) -> str:
    """The text of a turn `{role, content: [{type, text}]}`, its parts joined; pictures give none."""
    return "".join(part["text"] or "" for part in message["content"])


def count_pictures(messages: Iterable[Mapping[str, Any]]) -> int:
    """How many pictures some turns show."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def sample_indices(total: int, count: int, seed: int) -> list[int]:
    """At most `count` of `total` rows, drawn once by the seed, in rising order so that reads stay sequential."""
    if total <= count:
        return list(range(total))
    return sorted(random.Random(seed).sample(range(total), count))
