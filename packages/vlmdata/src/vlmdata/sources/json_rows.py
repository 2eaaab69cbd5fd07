"""Rows of JSON files: one object a line, or the elements of one array, never the whole file at once.

An array is cut into its elements by their brackets and quotes, and each element is parsed by itself: one that is broken
costs one row. (Event parsers such as ijson stop for good at the first `NaN` or misplaced character.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from vlmdata.errors import DataError
from vlmdata.sample import Problem, RawRow
from vlmdata.sources.rows import IndexedRow, open_binary

__all__ = ["READ_BYTES", "cut_list", "parse_object", "read_json", "tell_layout"]

_BOM = b"\xef\xbb\xbf"
READ_BYTES = 1 << 20
# No set needs more; rows travel between processes, and what walks through them may recurse.
_MAX_DEPTH = 64
# A whole string (group 1 holds its closing quote, or nothing where the buffer ends before it), a whole object without
# brackets inside (most elements are, and take one step so), a bracket or a comma. Possessive, because giving back costs
# memory for every escape of a long string.
_TOKEN = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)'
    rb'|\{[^{}\[\]"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^{}\[\]"]*+)*+\}'
    rb"|[\[\]{},]",
    re.DOTALL,
)


def read_json(path: Path, max_row_bytes: int) -> Iterator[IndexedRow]:
    """Yield the rows of a JSON file of either layout, whatever its name ends in.

    Raises:
        DataError: the file is neither an array nor lines of objects.
    """
    layout = tell_layout(path)
    with open_binary(path) as file:
        pieces = _split_array(file, max_row_bytes) if layout == "array" else _split_lines(file, max_row_bytes)
        for index, piece in enumerate(pieces):
            yield index, piece if isinstance(piece, Problem) else parse_object(piece)


def tell_layout(path: Path) -> str:
    """Tell whether a JSON file is an `array` or has one object on each of its `lines`.

    Raises:
        DataError: it is one object over several lines, or no JSON at all.
    """
    with open_binary(path) as file:
        head = file.read(READ_BYTES).removeprefix(_BOM).lstrip()
    if not head:
        raise DataError(f"{path}: the file is empty")
    if head.startswith(b"["):
        return "array"
    first_line = head.split(b"\n", 1)[0].strip()
    if head.startswith(b"{") and first_line == b"{":
        raise DataError(f"{path}: holds one JSON object, not an array of rows or one row on each line")
    return "lines"


def parse_object(text: bytes) -> RawRow | Problem:
    """Parse one JSON object; `NaN` and `Infinity` become floats, as Python's own parser has it."""
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return Problem("bad_encoding", f"not UTF-8: {error.reason} at byte {error.start}")
    except RecursionError:
        return Problem("json_too_deep", f"objects or arrays are nested more than {_MAX_DEPTH} deep")
    except ValueError as error:
        return Problem("json_broken", f"{error}")
    if text.count(b"[") + text.count(b"{") > _MAX_DEPTH and _is_deeper(value, _MAX_DEPTH):
        return Problem("json_too_deep", f"objects or arrays are nested more than {_MAX_DEPTH} deep")
    if not isinstance(value, dict):
        return Problem("not_an_object", f"a {type(value).__name__}, not an object with named values")
    return value


def _is_deeper(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in inner)


def _split_lines(file: BinaryIO, max_row_bytes: int) -> Iterator[bytes | Problem]:
    first = True
    while line := file.readline(max_row_bytes + 1):
        if first:
            line, first = line.removeprefix(_BOM), False
        if len(line) > max_row_bytes:
            length = len(line)
            while not line.endswith(b"\n") and (line := file.readline(READ_BYTES)):
                length += len(line)
            yield Problem("line_too_long", f"{length} bytes, more than max_line_bytes = {max_row_bytes}")
        elif line := line.strip():
            yield line


def _split_array(file: BinaryIO, max_row_bytes: int) -> Iterator[bytes | Problem]:
    """Cut the elements of a top-level array out of a stream."""
    rest = yield from cut_list(file, file.read(READ_BYTES).removeprefix(_BOM).lstrip()[1:], max_row_bytes)
    if rest is None:
        yield Problem("json_broken", "the file ends inside the array; its last element is not whole")
    else:
        yield from _check_rest(file, rest)


def cut_list(file: BinaryIO, buffer: bytes, max_row_bytes: int) -> Generator[bytes | Problem, None, bytes | None]:
    """Cut what stands between the commas of a list out of a stream, unparsed.

    Args:
        file: what follows.
        buffer: what was read of it already, from behind the bracket that opens the list.
        max_row_bytes: elements of more bytes are not held.

    Yields:
        Each element, or why it is none.

    Returns:
        What was read behind the bracket that closes the list; None where the file ends before that.
    """
    # the current element lies from `start` on, after `dropped_bytes` of an element that is too long to keep; the search
    # for its next bracket goes on at `at`
    start = at = depth = dropped_bytes = 0
    while True:
        token = _TOKEN.search(buffer, at)
        if token is None or token[1] == b"":
            # nothing more to see, or a string that goes on: keep what is needed and read as much again
            at = len(buffer) if token is None else token.start()
            if dropped_bytes + len(buffer) - start > max_row_bytes:
                kept = b"" if token is None else b'"' + buffer[token.end() :]
                dropped_bytes += len(buffer) - start - len(kept)
                buffer, start, at = kept, 0, 0
            more = file.read(max(READ_BYTES, len(buffer) - start))
            if not more:
                return None
            buffer, start, at = buffer[start:] + more, 0, at - start
            continue
        at = token.end()
        mark = token[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif depth and mark in (b"]", b"}"):
            depth -= 1
        elif not depth and mark in (b",", b"]", b"}"):
            element = buffer[start : at - 1].strip()
            if (length := dropped_bytes + len(element)) > max_row_bytes:
                yield Problem("line_too_long", f"an element of {length} bytes, more than {max_row_bytes}")
            elif element or mark == b",":
                yield element or Problem("json_broken", "nothing between two commas")
            if mark != b",":
                return buffer[at:]
            start, dropped_bytes = at, 0


def _check_rest(file: BinaryIO, rest: bytes) -> Iterator[Problem]:
    if (rest + file.read(READ_BYTES)).strip():
        yield Problem("json_broken", "more data follows after the end of the array")
