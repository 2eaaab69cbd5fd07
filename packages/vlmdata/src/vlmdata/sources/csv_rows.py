"""Rows of CSV and TSV files, with the defects of real ones: byte-order marks, semicolons, ragged rows, broken text."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vlmdata.errors import DataError
from vlmdata.sample import Problem
from vlmdata.sources.rows import IndexedRow, open_binary

__all__ = ["read_csv", "tell_dialect"]

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def tell_dialect(path: Path, encoding: str) -> tuple[str, str]:
    """Return the delimiter and the encoding of a file: by its byte-order mark, its name and its header line."""
    with open_binary(path) as file:
        head = file.read(1 << 16)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), encoding)
    if ".tsv" in path.suffixes:
        return "\t", encoding
    header = head.decode(encoding, errors="replace").partition("\n")[0]
    # spreadsheets in countries with a decimal comma write semicolons
    candidates = [mark for mark in (",", ";", "\t", "|") if mark in header]
    return (candidates[0] if candidates else ","), encoding


class _BoundedLines:
    """Lines of a text file; one that is too long is skipped, and `skipped_chars` says so."""

    def __init__(self, file: TextIO, max_chars: int) -> None:
        self._file = file
        self._max_chars = max_chars
        self.skipped_chars = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(self._max_chars + 1):
            if len(line) <= self._max_chars:
                yield line
                continue
            self.skipped_chars = len(line)
            while not line.endswith("\n") and (line := self._file.readline(1 << 20)):
                self.skipped_chars += len(line)
            yield "\n"


def read_csv(path: Path, encoding: str, max_line_bytes: int) -> Iterator[IndexedRow]:
    """Yield the rows of a file with a header line; every value is text.

    Raises:
        DataError: there is no header, or two columns have one name.
    """
    delimiter, encoding = tell_dialect(path, encoding)
    csv.field_size_limit(max_line_bytes)
    # bytes that are not text become surrogates, and cost their own row instead of the file
    with io.TextIOWrapper(open_binary(path), encoding, errors="surrogateescape", newline="") as file:
        lines = _BoundedLines(file, max_line_bytes)
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader)]
        except StopIteration:
            raise DataError(f"{path}: the file is empty") from None
        except (csv.Error, UnicodeError) as error:
            raise DataError(f"{path}: no header line: {error}") from error
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path}: columns with the same name: {', '.join(map(repr, repeated))}")
        index = 0
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield index, Problem("csv_broken", f"{error}")
                index += 1
                continue
            except UnicodeError as error:
                yield index, Problem("bad_encoding", f"not {encoding}: {error}")
                return
            if values is None:
                return
            if lines.skipped_chars:
                detail = f"{lines.skipped_chars} characters, more than max_line_bytes = {max_line_bytes}"
                yield index, Problem("line_too_long", detail)
                lines.skipped_chars = 0
                index += 1
            elif values:
                yield index, _check_values(header, values, encoding)
                index += 1


def _check_values(header: list[str], values: list[str], encoding: str) -> dict[str, str] | Problem:
    if len(values) != len(header):
        hint = " (a comma inside a text needs quotes around it)" if len(values) > len(header) else ""
        return Problem("ragged_row", f"{len(values)} values for {len(header)} columns{hint}")
    row = dict(zip(header, values, strict=True))
    for name, value in row.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            return Problem("bad_encoding", f"column {name!r} is not {encoding} (see --encoding)")
    return row
