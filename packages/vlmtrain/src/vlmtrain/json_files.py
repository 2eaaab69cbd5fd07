"""Reading files of JSON: one object, or one value a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError

__all__ = ["read_lines", "read_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path}: must hold a JSON object")
    return loaded


def read_lines(path: Path) -> list[str]:
    """The lines of a file, without their ends.

    `str.splitlines` also parts a text at U+2028, U+0085 and others, which JSON leaves in strings as they are.

    Args:
        path: A UTF-8 file.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    with path.open(encoding="utf-8") as file:
        return [line.removesuffix("\n") for line in file]
