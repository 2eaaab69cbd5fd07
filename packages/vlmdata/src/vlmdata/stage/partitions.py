"""The rows of all inputs, cut into partitions at bounds that depend on the rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from vlmdata.formats import Reading
from vlmdata.sample import Problem, RawRow
from vlmdata.sources import IndexedRow, Source
from vlmdata.stage.staged import Task

__all__ = ["PARTITION_BYTES", "PARTITION_ROWS", "RowStream", "cut_partitions", "open_stream"]

PARTITION_ROWS = 512
# Rows that carry their images are heavy: fewer of them make a partition.
PARTITION_BYTES = 32 << 20
# How many rows are looked at to tell the format and the columns.
_HEAD_ROWS = 64


@dataclass(slots=True)
class RowStream:
    """The rows of one input, of which the first have been looked at."""

    source: Source
    head: list[IndexedRow]
    rest: Iterator[IndexedRow]

    def readable_head(self) -> list[RawRow]:
        """Return those of the first rows that could be read."""
        return [row for _, row in self.head if not isinstance(row, Problem)]


def open_stream(source: Source) -> RowStream:
    """Start reading an input.

    Raises:
        DataError: it cannot be read.
    """
    rows = source.read()
    return RowStream(source, list(islice(rows, _HEAD_ROWS)), rows)


def cut_partitions(streams: list[tuple[RowStream, Reading]]) -> Iterator[Task]:
    """Yield the partitions of all inputs, in order; none holds rows of two inputs.

    Raises:
        DataError: an input turns out to be broken in the middle.
    """
    number = 0
    for stream, reading in streams:
        for rows in _cut(chain(stream.head, stream.rest)):
            yield Task(
                number=number,
                source=stream.source.name,
                image_base=stream.source.image_base,
                reading=reading,
                rows=tuple(rows),
            )
            number += 1


def _cut(rows: Iterator[IndexedRow]) -> Iterator[list[IndexedRow]]:
    piece: list[IndexedRow] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += _payload_bytes(row[1])
        if len(piece) == PARTITION_ROWS or size >= PARTITION_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _payload_bytes(value: Any) -> int:
    """Return about how many bytes a value takes."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_payload_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(_payload_bytes, value))
    return 8
