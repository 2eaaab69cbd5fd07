"""Writing the shards of one split.

The bytes depend only on the rows: record batches are cut at fixed bounds in rows and bytes and built afresh, whatever
pieces the rows arrive in.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.manifest import ShardEntry, SplitEntry
from vlmdata.schema import ARROW_SCHEMA, Row
from vlmdata.set_files import write_split_files

__all__ = [
    "BATCH_BYTES",
    "BATCH_ROWS",
    "SHARD_BYTES",
    "SplitWriter",
    "measure_rows",
    "rows_to_batch",
    "sum_by_list",
]

BATCH_ROWS = 256
BATCH_BYTES = 64 << 20
SHARD_BYTES = 500 << 20

# What a row costs beside its images and texts (offsets, sizes, hashes); only used to cut batches and shards.
_ROW_OVERHEAD_BYTES = 512
# From here on hashing takes longer than handing it to a thread.
_THREADED_BYTES = 1 << 18

# Each takes up to four record batches of memory, and most of a core.
SHARDS_AT_ONCE = min(4, os.cpu_count() or 1)

_List: TypeAlias = "pa.ListArray[Any]"
_Int64s: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a batch by their indices: a view of each would take kilobytes, a copy as much as its images."""

    batch: pa.RecordBatch
    rows: _Int64s

    def views(self) -> Iterator[pa.RecordBatch]:
        """Yield each run of rows that follow one another, in place."""
        for run in np.split(self.rows, np.flatnonzero(np.diff(self.rows) != 1) + 1):
            yield self.batch.slice(int(run[0]), len(run))


# What becomes one record batch.
_Pieces: TypeAlias = list[_Piece]


class _HashingFile:
    """A binary sink for Arrow that counts and hashes what passes through; large pieces while they are written."""

    def __init__(self, file: BinaryIO, threads: Executor) -> None:
        self._file = file
        self._threads = threads
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.size += view.nbytes
        if view.nbytes < _THREADED_BYTES:
            self.digest.update(view)
            return self._file.write(view)
        hashed = self._threads.submit(self.digest.update, view)
        try:
            return self._file.write(view)
        finally:
            hashed.result()

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        self._file.close()
        self.closed = True


def rows_to_batch(rows: Sequence[Row | Mapping[str, Any]], schema: pa.Schema = ARROW_SCHEMA) -> pa.RecordBatch:
    """Turn Python rows into one record batch, of the contract's schema unless another is given.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit its column.
    """
    return pa.RecordBatch.from_pylist(list(rows), schema=schema)


def measure_rows(batch: pa.RecordBatch) -> _Int64s:
    """Return about how many bytes each row of a batch takes: its images and the text of its messages."""
    images = cast(_List, batch.column("images"))
    messages = cast(_List, batch.column("messages"))
    parts = cast(_List, cast(pa.StructArray, messages.flatten()).field("content"))
    image_bytes = _byte_lengths(cast(pa.StructArray, images.flatten()).field("bytes"))
    text_bytes = _byte_lengths(cast(pa.StructArray, parts.flatten()).field("text"))
    per_message = sum_by_list(text_bytes, parts)
    return sum_by_list(image_bytes, images) + sum_by_list(per_message, messages) + _ROW_OVERHEAD_BYTES


def _byte_lengths(values: pa.Array[Any]) -> _Int64s:
    lengths = pc.binary_length(cast("pa.BinaryArray", values))
    return np.asarray(lengths.fill_null(0), dtype=np.int64)


def sum_by_list(values: _Int64s, lists: _List) -> _Int64s:
    """Return the sum of the values of each list, given all of them one after the other."""
    bounds = np.concatenate([[0], np.cumsum(np.asarray(lists.value_lengths(), dtype=np.int64))])
    totals = np.concatenate([[0], np.cumsum(values)])[bounds]
    return np.asarray(np.diff(totals), dtype=np.int64)


class SplitWriter:
    """Writes rows in the order given to `FOLDER/NAME/data-00000-of-0000N.arrow`.

    Rows are cut into batches and shards as they come, and whole shards are written, several at once, by threads: until
    then they are only held, so that they had better be views of mapped files. Shards carry a temporary name until
    `close`, which knows how many there are. Used as a context manager, it waits for its threads when an exception
    passes, and leaves the temporary files to whoever owns the folder.

    Args:
        folder: the built folder (or the place where it is being put together).
        name: the split's name.
        shard_bytes: a new shard is begun when the current one holds this many bytes of rows.

    Attributes:
        schema: of the rows that are given to it.
    """

    schema = ARROW_SCHEMA

    def __init__(self, folder: Path, name: str, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.name = name
        self._directory = folder / name
        self._directory.mkdir(parents=True, exist_ok=True)
        self._shard_bytes = shard_bytes
        self._batch_bytes = min(BATCH_BYTES, shard_bytes)
        self._pending: _Pieces = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._batches: list[_Pieces] = []
        self._filled_bytes = 0
        self._shards: list[Future[ShardEntry]] = []
        self._threads = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard")
        self._stopped = threading.Event()

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, exception_type: object, *_: object) -> None:
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)

    def write_rows(self, rows: Iterable[Row | Mapping[str, Any]]) -> None:
        """Append Python rows."""
        piece: list[Row | Mapping[str, Any]] = []
        for row in rows:
            piece.append(row)
            if len(piece) == BATCH_ROWS:
                self.write_batch(rows_to_batch(piece))
                piece = []
        if piece:
            self.write_batch(rows_to_batch(piece))

    def write_batch(self, batch: pa.RecordBatch, rows: _Int64s | None = None) -> None:
        """Append rows of a record batch, which may be a view of a mapped file.

        Args:
            batch: held, with the indices, until its shard is full.
            rows: indices of the rows to append, in ascending order; all of them unless given.
        """
        wanted = np.arange(batch.num_rows, dtype=np.int64) if rows is None else rows
        begin = 0
        for i, size in enumerate(self.measure(batch)[wanted].tolist()):
            full = self._pending_rows == BATCH_ROWS or self._pending_bytes + size > self._batch_bytes
            if full and self._pending_rows:
                self._hold(batch, wanted[begin:i])
                self._end_batch()
                begin = i
            self._pending_rows += 1
            self._pending_bytes += size
        self._hold(batch, wanted[begin:])

    def measure(self, batch: pa.RecordBatch) -> _Int64s:
        """Return about how many bytes each row of a batch will take."""
        return measure_rows(batch)

    def finisher(self) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        """Return what makes rows of one shard, batch by batch, those of the contract."""
        return lambda batch: batch

    def close(self) -> SplitEntry:
        """Write what is pending, give the shards their final names, and return the split's entry of the manifest."""
        self._end_batch()
        if self._batches or not self._shards:
            self._end_shard()
        shards = [future.result() for future in self._shards]
        self._threads.shutdown()
        entries = []
        for i, shard in enumerate(shards):
            final = f"data-{i:05d}-of-{len(shards):05d}.arrow"
            (self._directory / shard.file).rename(self._directory / final)
            entries.append(replace(shard, file=f"{self.name}/{final}"))
        entry = SplitEntry(rows=sum(shard.rows for shard in entries), shards=tuple(entries))
        write_split_files(self._directory, self.name, entry)
        return entry

    def _hold(self, batch: pa.RecordBatch, rows: _Int64s) -> None:
        if len(rows):
            self._pending.append(_Piece(batch, rows))

    def _end_batch(self) -> None:
        if not self._pending:
            return
        if self._filled_bytes >= self._shard_bytes:
            self._end_shard()
        self._batches.append(self._pending)
        self._filled_bytes += self._pending_bytes
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def _end_shard(self) -> None:
        while len(running := [future for future in self._shards if not future.done()]) >= SHARDS_AT_ONCE:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                done.result()
        path = self._directory / f"data-{len(self._shards):05d}.arrow.part"
        self._shards.append(
            self._threads.submit(_write_shard, path, self._batches, self.schema, self.finisher(), self._stopped)
        )
        self._batches, self._filled_bytes = [], 0


def _write_shard(
    path: Path,
    batches: Sequence[_Pieces],
    schema: pa.Schema,
    finish: Callable[[pa.RecordBatch], pa.RecordBatch],
    stopped: threading.Event,
) -> ShardEntry:
    """Write a shard, each batch while the next is put together; nobody asks for what is left when `stopped` is set."""
    rows = 0
    writing: Future[None] | None = None
    with path.open("wb") as file, ThreadPoolExecutor(2, thread_name_prefix="write") as threads:
        sink = _HashingFile(file, threads)
        stream = pa.ipc.new_stream(pa.PythonFile(cast(IOBase, sink), mode="w"), ARROW_SCHEMA)
        for pieces in batches:
            if stopped.is_set():
                break
            # Joining, even of one view, makes new buffers: what lay beside the rows in their old file stays behind.
            views = [view for piece in pieces for view in piece.views()]
            columns = [pa.concat_arrays([view.column(i) for view in views]) for i in range(len(schema))]
            batch = finish(pa.RecordBatch.from_arrays(columns, schema=schema))
            if writing is not None:
                writing.result()
            writing = threads.submit(stream.write_batch, batch)
            rows += batch.num_rows
        if writing is not None:
            writing.result()
        stream.close()
    return ShardEntry(file=path.name, rows=rows, bytes=sink.size, sha256=sink.digest.hexdigest())
