"""The rows of all inputs, cut into partitions at bounds that depend on the rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vlmdata.formats import Reading, expand_answers
from vlmdata.locations import is_remote
from vlmdata.sources import IndexedRow, Source
from vlmdata.stage.staged import Task

__all__ = ["FIRST_PARTITION_ROWS", "PARTITION_BYTES", "PARTITION_ROWS", "cut_partitions"]

PARTITION_ROWS = 512
# The first partitions of an input are smaller, so that a small set of large images, too, keeps all workers busy to its
# end: each has this share of the rows before it, but at least so many rows.
FIRST_PARTITION_ROWS = 16
_SHARE_OF_ROWS_BEFORE = 1 / 32
# Rows that carry their images are heavy: fewer of them make a partition.
PARTITION_BYTES = 32 << 20
# Partitions of an input are counted from a multiple of this, so that one input's growth renames no other's.
_NUMBERS_PER_INPUT = 10_000_000


def cut_partitions(inputs: Iterable[tuple[Source, Reading]]) -> Iterator[Task]:
    """Yield the partitions of all inputs, in order; none holds rows of two inputs.

    Raises:
        DataError: an input turns out to be broken in the middle.
    """
    for position, (source, reading) in enumerate(inputs):
        base = source.image_base if is_remote(source.image_base) else source.image_base.absolute()
        for number, rows in enumerate(_cut(expand_answers(source.read(), reading)), position * _NUMBERS_PER_INPUT):
            yield Task(number=number, source=source.name, image_base=base, reading=reading, rows=tuple(rows))


def _cut(rows: Iterable[IndexedRow]) -> Iterator[list[IndexedRow]]:
    piece: list[IndexedRow] = []
    size, before = 0, 0
    for row in rows:
        piece.append(row)
        size += _payload_bytes(row[1])
        enough = min(max(FIRST_PARTITION_ROWS, int(before * _SHARE_OF_ROWS_BEFORE)), PARTITION_ROWS)
        if len(piece) >= enough or size >= PARTITION_BYTES:
            yield piece
            before += len(piece)
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
