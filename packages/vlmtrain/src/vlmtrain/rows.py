"""The rows of a built folder as the trainers take them: memory-mapped, pictures decoded when a row is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmdata.manifest import Manifest, verify_folder

__all__ = ["Rows", "open_folder", "open_split", "sample_rows"]

Rows = Any
"""A `datasets.Dataset` with columns `messages` and `images`, memory-mapped."""


def open_folder(folder: Path) -> Manifest:
    """The manifest of a built folder whose shards have the sizes that it names.

    Raises:
        DataError: The manifest is missing, of an unknown version, or a shard does not match it.
    """
    return verify_folder(folder)


def open_split(folder: Path, manifest: Manifest, split: str, columns: Sequence[str] = ("messages", "images")) -> Rows:
    """Maps the shards of one split into memory; no row is read or decoded here.

    Args:
        folder: A built folder.
        manifest: Its manifest.
        split: The split to open.
        columns: What to read of each row.

    Raises:
        ConfigError: There is no such split.
        DataError: A shard is not a readable Arrow file, or the split is empty.
    """
    from datasets import Dataset, concatenate_datasets

    if split not in manifest.splits:
        raise ConfigError(f"{folder}: no split {split!r}; it has {', '.join(manifest.splits)}")
    entry = manifest.splits[split]
    if not entry.rows:
        raise DataError(f"{folder}: split {split!r} has no rows")
    shards = []
    for shard in entry.shards:
        path = folder / shard.file
        try:
            shards.append(Dataset.from_file(str(path)))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable shard: {' '.join(str(error).split())}") from error
    return concatenate_datasets(shards).select_columns(list(columns))


def sample_rows(rows: Rows, count: int, seed: int) -> Rows:
    """At most `count` rows, drawn once by the seed, in the order in which they stand."""
    if len(rows) <= count:
        return rows
    import random

    # contiguous order keeps reads of the mapped file sequential
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), count)))
