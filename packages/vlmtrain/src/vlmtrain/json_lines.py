"""Files of one JSON value a line, read so that no character of a text is taken for the end of its line."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_lines"]


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
