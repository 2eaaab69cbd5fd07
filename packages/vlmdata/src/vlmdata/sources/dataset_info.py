"""LLaMA-Factory's `dataset_info.json`: what it says of a file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError

__all__ = ["DATASET_INFO", "Description", "find_description"]

DATASET_INFO = "dataset_info.json"


@dataclass(frozen=True, slots=True)
class Description:
    """The entry of a file: its name, what it says, and the `dataset_info.json` it stands in."""

    name: str
    entry: Mapping[str, Any]
    file: Path


def find_description(path: Path) -> Description | None:
    """Return the first entry about a file; Hugging Face's files of the same name have none.

    Raises:
        DataError: the `dataset_info.json` is not readable.
    """
    file = path.with_name(DATASET_INFO)
    if not file.is_file():
        return None
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable: {error}") from error
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and entry["file_name"] == path.name:
            return Description(name, entry, file)
    return None
