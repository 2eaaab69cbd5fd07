"""One JSON object that holds lists, read list by list and element by element, never as a whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterator
from typing import BinaryIO

from vlmdata.sample import Problem
from vlmdata.sources.json_rows import READ_BYTES, cut_list

__all__ = ["split_lists"]

_BOM = b"\xef\xbb\xbf"
# The name of a member and the first character of its value, which says what kind it is of.
_MEMBER = re.compile(rb'\s*+"([^"\\]*+)"\s*+:\s*+([^\s])')
_AFTER_MEMBER = re.compile(rb"\s*+([,}])")
# A number, a word or a string.
_SCALAR = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,"{}\[\]]++(?=[\s,}])', re.DOTALL)


def split_lists(
    file: BinaryIO, names: Collection[str], max_row_bytes: int
) -> Iterator[tuple[str, bytes | Problem | None]]:
    """Yield the elements of the named lists of the object that a file holds, unparsed, in the order of the file.

    Args:
        file: from its beginning.
        names: of the lists; other members are passed over.
        max_row_bytes: elements of more bytes are not held.

    Yields:
        The name of a list with None, once, where it begins; and with each of its elements, or why it is none.

    Raises:
        ValueError: it is no such object, or not whole.
    """
    buffer = file.read(READ_BYTES).removeprefix(_BOM).lstrip()
    if not buffer.startswith(b"{"):
        raise ValueError("not an object")
    buffer = buffer[1:]
    while True:
        match, buffer = _expect(_MEMBER, file, buffer)
        name, opening = match[1].decode("utf-8", "replace"), match[2]
        if opening in (b"[", b"{"):
            wanted = name in names and opening == b"["
            if wanted:
                yield name, None
            pieces = cut_list(file, buffer[match.end() :], max_row_bytes)
            rest = yield from _name_each(name, pieces, wanted)
            if rest is None:
                raise ValueError(f"it ends inside of {name!r:.60}")
            buffer = rest
        else:
            scalar, buffer = _expect(_SCALAR, file, buffer[match.start(2) :])
            buffer = buffer[scalar.end() :]
        match, buffer = _expect(_AFTER_MEMBER, file, buffer)
        buffer = buffer[match.end() :]
        if match[1] == b"}":
            if (buffer + file.read(READ_BYTES)).strip():
                raise ValueError("more data follows after the end of the object")
            return


def _name_each(
    name: str, pieces: Generator[bytes | Problem, None, bytes | None], wanted: bool
) -> Generator[tuple[str, bytes | Problem], None, bytes | None]:
    while True:
        try:
            piece = next(pieces)
        except StopIteration as stop:
            rest: bytes | None = stop.value
            return rest
        if wanted:
            yield name, piece


def _expect(pattern: re.Pattern[bytes], file: BinaryIO, buffer: bytes) -> tuple[re.Match[bytes], bytes]:
    """Match what must come next, and read on where the buffer ends before it does.

    Raises:
        ValueError: something else comes, or nothing.
    """
    while True:
        match = pattern.match(buffer)
        if match is not None:
            return match, buffer
        # what is looked for is short; only a name or a word of more than a buffer is not found
        more = file.read(READ_BYTES) if len(buffer) <= READ_BYTES else b""
        if not more:
            raise ValueError(f"it is broken before {buffer[:40]!r}" if buffer.strip() else "it is not whole")
        buffer += more
