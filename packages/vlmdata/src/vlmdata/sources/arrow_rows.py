"""Rows of Parquet, Arrow and Feather files, read in small batches; class labels become their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from io import IOBase
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.errors import DataError
from vlmdata.locations import is_remote
from vlmdata.sample import RawRow
from vlmdata.sources.rows import IndexedRow

__all__ = ["class_names", "count_rows", "read_arrow", "rows_of_batches"]

# Rows turned into Python objects at a time: each may carry the bytes of several images.
_ROWS_AT_ONCE = 32


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names behind the integers of each class-label column, from a schema's Hugging Face metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def rows_of_batches(
    batches: Iterator[pa.RecordBatch], labels: Mapping[str, list[str]], first_index: int = 0
) -> Iterator[IndexedRow]:
    """Yield the rows of record batches as dictionaries."""
    index = first_index
    for batch in batches:
        for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for row in batch.slice(begin, _ROWS_AT_ONCE).to_pylist():
                yield index, _name_labels(row, labels)
                index += 1


def _name_labels(row: RawRow, labels: Mapping[str, list[str]]) -> RawRow:
    for column, names in labels.items():
        value = row.get(column)
        # datasets writes -1 for a missing label
        row[column] = names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    return row


def _open(path: Path) -> tuple[pa.Schema, Callable[[], Iterator[pa.RecordBatch]], Callable[[], int]]:
    """Return the schema, a function that starts reading, and one that counts rows."""
    if path.suffix == ".parquet":
        parquet = pq.ParquetFile(path.open("rb") if is_remote(path) else path)
        return (
            parquet.schema_arrow,
            lambda: parquet.iter_batches(batch_size=_ROWS_AT_ONCE),
            lambda: int(parquet.metadata.num_rows),
        )
    try:
        file = pa.ipc.open_file(_map(path))
    except pa.ArrowInvalid:
        stream = pa.ipc.open_stream(_map(path))
        return stream.schema, lambda: iter(stream), lambda: sum(batch.num_rows for batch in stream)
    batches = range(file.num_record_batches)
    return (
        file.schema,
        lambda: (file.get_batch(i) for i in batches),
        lambda: sum(file.get_batch(i).num_rows for i in batches),
    )


def _map(path: Path) -> pa.NativeFile:
    return pa.PythonFile(cast(IOBase, path.open("rb")), mode="r") if is_remote(path) else pa.memory_map(str(path))


def read_arrow(path: Path) -> Iterator[IndexedRow]:
    """Yield the rows of a Parquet, Arrow IPC (file or stream) or Feather file.

    Raises:
        DataError: the file is none of these, or broken.
    """
    try:
        schema, start, _ = _open(path)
        yield from rows_of_batches(start(), class_names(schema.metadata))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {path.suffix[1:]} file: {error}") from error


def count_rows(path: Path) -> int:
    """Return the number of rows of a file, without reading its values.

    Raises:
        DataError: as `read_arrow`.
    """
    try:
        return _open(path)[2]()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {path.suffix[1:]} file: {error}") from error
