"""Images that are stored as they came: staged rows name their files, and shards take them from there.

So their bytes are written once, not twice, and kept staging holds none of them. Each file is held against the hash of
what was prepared when a shard takes it in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from vlmdata.errors import DataError
from vlmdata.images.containers import strip_metadata
from vlmdata.schema import ARROW_SCHEMA, Row
from vlmdata.shard_writer import SplitWriter, measure_rows, sum_by_list
from vlmdata.shards import open_shard
from vlmdata.stage.staged import StagedFiles

__all__ = [
    "STAGED_SCHEMA",
    "OriginalChangedError",
    "OriginalRow",
    "StagedRow",
    "StagedSplitWriter",
    "open_staged",
    "take_in",
]

_MAX_BATCH_BYTES = (1 << 31) - 1


class OriginalRow(TypedDict):
    """Where an image of a staged row lies: the file, its XXH3-128, the bytes to store, the format to strip it by."""

    path: str
    digest: bytes
    size: int
    strip: str | None


class StagedRow(Row):
    """A row whose images may lie in their files: then `originals` says where, and their bytes are empty."""

    originals: list[OriginalRow | None]


_ORIGINAL = pa.struct(
    cast(
        Any,
        [("path", pa.string()), ("digest", pa.binary(16)), ("size", pa.int64()), ("strip", pa.string())],
    )
)
STAGED_SCHEMA = ARROW_SCHEMA.append(pa.field("originals", pa.list_(_ORIGINAL)))


class OriginalChangedError(DataError):
    """A file is not what it was when it was prepared."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path}: the file changed while the build was running; build again")


def open_staged(files: StagedFiles) -> list[pa.RecordBatch]:
    """Map the rows of a staged partition; nothing is copied."""
    return open_shard(files.rows, STAGED_SCHEMA)


class StagedSplitWriter(SplitWriter):
    """Writes staged rows, whose images it takes in batch by batch."""

    schema = STAGED_SCHEMA

    def measure(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Return about how many bytes each row will take."""
        originals = cast("pa.ListArray[Any]", batch.column("originals"))
        return measure_rows(batch) + sum_by_list(_sizes(cast(pa.StructArray, originals.flatten())), originals)

    def finisher(self) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        """Return what takes in the images of one shard's batches."""
        return partial(take_in, reserve=_TakingTurns())


class _TakingTurns:
    """Two pieces of memory: one batch is written while the next is read. New ones would cost as much as reading."""

    def __init__(self) -> None:
        self._in_use = self._spare = np.empty(0, np.uint8)

    def __call__(self, size: int) -> pa.Buffer:
        self._in_use, self._spare = self._spare, self._in_use
        if len(self._in_use) < size:
            self._in_use = np.empty(size, np.uint8)
        return pa.py_buffer(cast(Any, self._in_use[:size]))


def take_in(batch: pa.RecordBatch, reserve: Callable[[int], pa.Buffer] = pa.allocate_buffer) -> pa.RecordBatch:
    """Return staged rows as rows of the contract, with the bytes of all their images.

    Args:
        batch: of `STAGED_SCHEMA`.
        reserve: gives memory of so many bytes, which the images then lie in.

    Raises:
        OriginalChangedError: a file is not what it was.
    """
    column = cast("pa.ListArray[Any]", batch.column("images"))
    images = cast(pa.StructArray, column.flatten())
    originals = cast(pa.StructArray, cast("pa.ListArray[Any]", batch.column("originals")).flatten())
    held = cast("pa.BinaryArray", images.field("bytes"))
    held_lengths = np.asarray(pc.binary_length(held), dtype=np.int64)
    lengths = held_lengths + _sizes(originals)
    ends = np.cumsum(lengths)
    if len(ends) and ends[-1] > _MAX_BATCH_BYTES:
        raise DataError(f"a row has images of {ends[-1]} bytes, more than {_MAX_BATCH_BYTES}")
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    buffer = reserve(int(starts[-1]))
    target = memoryview(cast(Any, buffer)).cast("B")
    for i in np.flatnonzero(held_lengths).tolist():
        target[starts[i] : starts[i + 1]] = memoryview(held[i].as_buffer()).cast("B")
    for i, original in _list_originals(originals):
        _read_original(original, target[starts[i] : starts[i + 1]])
    offsets = pa.py_buffer(starts.astype(np.int32).tobytes())
    data = pa.Array.from_buffers(pa.binary(), len(images), [None, offsets, buffer])
    fields = [images.type.field(i) for i in range(images.type.num_fields)]
    taken = pa.StructArray.from_arrays([data, images.field("path")], fields=fields)
    counts = np.asarray(column.value_lengths(), dtype=np.int32)
    bounds = pa.py_buffer(np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)]).tobytes())
    whole = pa.Array.from_buffers(column.type, len(column), [None, bounds], children=[taken])
    arrays = [whole if name == "images" else batch.column(name) for name in ARROW_SCHEMA.names]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)


def _sizes(originals: pa.StructArray) -> npt.NDArray[np.int64]:
    """Bytes that lie in files, 0 for images whose bytes are in their rows."""
    sizes = cast("pa.Int64Array", originals.field("size"))
    return np.asarray(sizes.fill_null(0), dtype=np.int64)


def _list_originals(originals: pa.StructArray) -> Iterator[tuple[int, OriginalRow]]:
    for i, original in enumerate(cast("pa.Array[Any]", originals).to_pylist()):
        if original is not None:
            yield i, cast(OriginalRow, original)


def _read_original(original: OriginalRow, target: memoryview) -> None:
    """Read a file into its place."""
    path = original["path"]
    with suppress(FileNotFoundError, NotADirectoryError):
        if original["strip"] is None:
            if _read_whole(path, target) and xxhash.xxh3_128_digest(target) == original["digest"]:
                return
        else:
            data = Path(path).read_bytes()
            if xxhash.xxh3_128_digest(data) == original["digest"]:
                stripped = strip_metadata(data, original["strip"])
                assert stripped is not None
                target[:] = stripped
                return
    raise OriginalChangedError(path)


def _read_whole(path: str, target: memoryview) -> bool:
    """Read a file that is as long as its place; tell whether it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(target) and (count := os.readv(descriptor, [target[done:]])):
            done += count
        return done == len(target) and not os.read(descriptor, 1)
    finally:
        os.close(descriptor)
