"""What every reader gives: rows as plain dictionaries with their index, and a `Problem` in place of a broken one."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from vlmdata.errors import DataError
from vlmdata.locations import is_remote, open_bytes
from vlmdata.sample import Problem, RawRow

__all__ = ["IndexedRow", "Source", "explain_gzip_errors", "open_binary"]

# The 0-based index of a row in its file, and the row.
IndexedRow: TypeAlias = tuple[int, RawRow | Problem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input file (or list of files) that gives rows.

    Attributes:
        name: of the file, relative to the inputs' root; it goes into rejected.jsonl and the `source` column.
        kind: what it was taken for, in words, for the summary.
        image_base: the folder that relative image paths start from.
        files: the files (or, where rows are a listing, folders) whose change means that the input has changed.
        read: starts reading from the first row; may be called again.
        description: what a `dataset_info.json` of LLaMA-Factory says of the file, where there is one.
    """

    name: str
    kind: str
    image_base: Path
    files: tuple[Path, ...]
    read: Callable[[], Iterator[IndexedRow]]
    description: Mapping[str, Any] | None = None


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading bytes, through gzip where its name ends in `.gz`."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(open_bytes(path) if is_remote(path) else path, "rb"))
    return open_bytes(path)


@contextmanager
def explain_gzip_errors(path: Path) -> Iterator[None]:
    """Turn what gzip raises on a broken file, at any read, into one line.

    Raises:
        DataError: the file is not gzip, is damaged, or ends too early.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from error
