"""Reading a built folder: memory-mapped, without torch, datasets or Pillow.

folder = open_folder("out/clothing")
train = folder.split("train")
train[0]                                         # one row, as Python objects
for row in train.iterate(["id", "references"]):  # other columns, images too, are never touched
    ...
train.stored_sizes()                             # [[(749, 1000)], [(300, 400), (512, 512)], …], from image_info

Its import needs pyarrow and nothing heavier, because training reads its rows through this module.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa

from vlmdata.errors import DataError
from vlmdata.locations import is_remote, locator
from vlmdata.manifest import Manifest, SplitEntry, verify_folder
from vlmdata.remote_folder import fetch_folder
from vlmdata.schema import ARROW_SCHEMA, COLUMNS, Row

__all__ = ["BuiltFolder", "Split", "open_folder", "open_shard"]

# Rows turned into Python objects at a time when iterating: few, because each may carry several images.
_ROWS_AT_ONCE = 16


def open_shard(path: Path, wanted: pa.Schema = ARROW_SCHEMA) -> list[pa.RecordBatch]:
    """Memory-map an Arrow IPC stream file and return its record batches; nothing is copied.

    Raises:
        DataError: the file is no Arrow stream, is cut short, or has other columns than those `wanted`.
    """
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            schema, batches = reader.schema, list(reader)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Arrow stream: {error}") from error
    if not schema.equals(wanted):
        difference = sorted(set(schema.names) ^ set(wanted.names)) or "column types"
        raise DataError(f"{path}: not the columns of a built folder (differs in {difference})")
    return batches


class Split(Sequence[Row]):
    """The rows of one split, read on demand from memory-mapped shards.

    Picklable, and cheap to send to worker processes: a copy maps the files again when it is first read.
    """

    def __init__(self, name: str, paths: Sequence[Path], num_rows: int) -> None:
        self.name = name
        self.num_rows = num_rows
        self._paths = tuple(paths)
        self._opened: tuple[list[pa.RecordBatch], list[int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {self.num_rows} rows, {len(self._paths)} shards)"

    def __len__(self) -> int:
        return self.num_rows

    @property
    def paths(self) -> tuple[Path, ...]:
        """The shard files, in order."""
        return self._paths

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num_rows))]
        return cast("Row", self.read_row(index))

    def read_row(self, index: int, columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
        """Return one row as Python objects, with only the named columns.

        Raises:
            IndexError: there is no such row.
        """
        position = index + self.num_rows if index < 0 else index
        if not 0 <= position < self.num_rows:
            raise IndexError(f"row {index} of split {self.name!r}, which has {self.num_rows} rows")
        batches, starts = self._open()
        which = bisect_right(starts, position) - 1
        batch = batches[which].select(list(columns)).slice(position - starts[which], 1)
        return batch.to_pylist()[0]

    def iterate(self, columns: Sequence[str] = COLUMNS) -> Iterator[dict[str, Any]]:
        """Yield the rows in order with only the named columns; the bytes of the others are never read."""
        for batch in self.iterate_batches(columns):
            for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield from batch.slice(begin, _ROWS_AT_ONCE).to_pylist()

    def iterate_batches(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
        """Yield record batches in order with only the named columns; zero-copy views of the mapped files."""
        for batch in self._open()[0]:
            yield batch.select(list(columns))

    def to_table(self, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Return the named columns as one table over the mapped files; nothing is copied."""
        return pa.Table.from_batches(self._open()[0], schema=ARROW_SCHEMA).select(list(columns))

    def column(self, name: str) -> list[Any]:
        """Return a whole column as Python objects."""
        return cast("list[Any]", self.to_table([name]).column(0).to_pylist())

    def stored_sizes(self) -> list[list[tuple[int, int]]]:
        """Return the `(width, height)` in pixels of every stored image, row by row, without touching image bytes."""
        sizes: list[list[tuple[int, int]]] = []
        for batch in self.iterate_batches(["image_info"]):
            column = cast("pa.ListArray[Any]", batch.column(0))
            info = cast("pa.StructArray", column.flatten())
            widths, heights = (np.asarray(info.field(name)).tolist() for name in ("width", "height"))
            pairs = list(zip(widths, heights, strict=True))
            start = 0
            for count in np.asarray(column.value_lengths()).tolist():
                sizes.append(pairs[start : start + count])
                start += count
        return sizes

    def _open(self) -> tuple[list[pa.RecordBatch], list[int]]:
        if self._opened is None:
            batches = [batch for path in self._paths for batch in open_shard(path) if batch.num_rows]
            starts = [0]
            for batch in batches:
                starts.append(starts[-1] + batch.num_rows)
            if starts[-1] != self.num_rows:
                raise DataError(f"split {self.name!r}: its shards hold {starts[-1]} rows, expected {self.num_rows}")
            self._opened = batches, starts[:-1]
        return self._opened


class BuiltFolder:
    """A whole, checked built folder: its manifest and its splits."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.splits: Mapping[str, Split] = MappingProxyType(
            {name: _make_split(path, name, entry) for name, entry in manifest.splits.items()}
        )

    def split(self, name: str) -> Split:
        """Return a split by its name.

        Raises:
            DataError: the folder has no such split; the message names those it has.
        """
        if name not in self.splits:
            raise DataError(f"{self.path}: no split {name!r}; it has {', '.join(map(repr, self.splits))}")
        return self.splits[name]


def _make_split(folder: Path, name: str, entry: SplitEntry) -> Split:
    return Split(name, [folder / shard.file for shard in entry.shards], entry.rows)


def open_folder(path: str | Path, *, checksums: bool = False) -> BuiltFolder:
    """Open a built folder for reading.

    A remote folder is copied to the cache first (`remote_folder.fetch_folder`), because its shards are memory-mapped.

    Args:
        path: the folder that `vlmdata build` wrote, or its URL.
        checksums: also compare every shard's SHA-256, which reads all bytes; sizes are always compared.

    Raises:
        DataError: no manifest, an unknown schema version, or shards that do not match the manifest.
        MissingDependencyError: the file system of a URL is not installed.
        ResourceError: the network, the credentials or the disk give out.
    """
    folder = fetch_folder(path) if is_remote(path) else Path(locator(path))
    return BuiltFolder(folder, verify_folder(folder, checksums=checksums))
