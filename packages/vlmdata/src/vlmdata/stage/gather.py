"""The signatures of all staged partitions as columns over the whole set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from vlmdata.dedup import Signatures
from vlmdata.stage.staged import SIGNATURE_SCHEMA, PartitionSummary, StagedFiles

__all__ = ["StagedSet", "gather_signatures"]


@dataclass(slots=True)
class StagedSet:
    """The kept rows of all partitions, in order, R of them.

    Attributes:
        signatures: what deduplication compares.
        group: (R,) uint64, a hash of the `--group-by` value, 0 where there is none.
        prompt_hash: (R,) uint64, of all that comes before the last answer.
        system_hash: (R, 16) uint8, of the system text.
        is_mergeable: (R,) bool, whether other questions on the same images may follow in one conversation.
        first_row: for each partition the place of its first row among the R.
        names: for each partition the columns `row` (index in the input) and `id`, memory-mapped.
        partitions: the partitions, in order.
    """

    signatures: Signatures
    group: npt.NDArray[np.uint64]
    prompt_hash: npt.NDArray[np.uint64]
    system_hash: npt.NDArray[np.uint8]
    is_mergeable: npt.NDArray[np.bool_]
    first_row: npt.NDArray[np.int64]
    names: Sequence[pa.RecordBatch]
    partitions: Sequence[PartitionSummary]

    def name(self, place: int) -> tuple[str, int, str]:
        """Return the source, the index in it and the id of the row at a place."""
        partition = int(np.searchsorted(self.first_row, place, side="right")) - 1
        row = self.names[partition].slice(place - int(self.first_row[partition]), 1).to_pylist()[0]
        return self.partitions[partition].source, row["row"], row["id"]

    def repeated_ids(self, is_kept: npt.NDArray[np.bool_]) -> tuple[int, str]:
        """Return how many of the rows in a mask (R,) have the id of another one in it, and such an id."""
        ids = pa.chunked_array([batch.column("id") for batch in self.names], pa.string()).filter(pa.array(is_kept))
        if pc.count_distinct(ids).as_py() == len(ids):
            return 0, ""
        counted = pc.value_counts(ids)
        again = counted.filter(pc.greater(counted.field("counts"), pa.scalar(1)))
        return int(pc.sum(again.field("counts")).as_py()), str(again.field("values")[0].as_py())


def gather_signatures(folder: Path, partitions: Sequence[PartitionSummary]) -> StagedSet:
    """Read the signatures of all partitions; thumbnails stay on disk, joined into one mapped file."""
    batches = [_read_signatures(StagedFiles(folder, each.number)) for each in partitions]
    table = pa.Table.from_batches(batches, schema=SIGNATURE_SCHEMA)
    images = cast("pa.ListArray[Any]", table.column("images").combine_chunks())
    info = cast(pa.StructArray, images.flatten())
    counts = np.asarray(images.value_lengths(), dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    total = int(offsets[-1])
    signatures = Signatures(
        row_offsets=offsets,
        row_images=np.arange(total, dtype=np.int64),
        text_hash=_fixed_bytes(table.column("text_hash").combine_chunks(), 16),
        text_length=np.asarray(table.column("text_length"), dtype=np.int64),
        is_protected=np.zeros(table.num_rows, np.bool_),
        pixel_hash=_fixed_bytes(info.field("pixel_hash"), 16),
        phash=_fixed_bytes(info.field("phash"), 32),
        thumbnail=_join_thumbnails(folder, partitions, total),
        is_flat=np.asarray(info.field("is_flat").to_numpy(zero_copy_only=False), dtype=np.bool_),
        is_salvaged=np.asarray(info.field("is_salvaged").to_numpy(zero_copy_only=False), dtype=np.bool_),
        original_pixels=np.asarray(info.field("original_pixels"), dtype=np.int64),
    )
    return StagedSet(
        signatures=signatures,
        group=_hash_groups(table.column("group")),
        prompt_hash=np.asarray(table.column("prompt_hash"), dtype=np.uint64),
        system_hash=_fixed_bytes(table.column("system_hash").combine_chunks(), 16),
        is_mergeable=np.asarray(table.column("system_hash").is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_),
        first_row=np.cumsum([0, *(each.kept for each in partitions)], dtype=np.int64)[:-1],
        names=[batch.select(["row", "id"]) for batch in batches],
        partitions=partitions,
    )


def _read_signatures(files: StagedFiles) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.memory_map(str(files.signatures))) as stream:
        return stream.read_next_batch()


def _fixed_bytes(array: Any, width: int) -> npt.NDArray[np.uint8]:
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    return values[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)


def _join_thumbnails(folder: Path, partitions: Sequence[PartitionSummary], total: int) -> npt.NDArray[np.uint8]:
    if not total:
        return np.empty((0, 1), np.uint8)
    joined = folder / "thumbnails"
    with joined.open("wb") as out:
        for each in partitions:
            with StagedFiles(folder, each.number).thumbnails.open("rb") as part:
                shutil.copyfileobj(part, out, 1 << 20)
    return np.memmap(joined, np.uint8, mode="r").reshape(total, -1)


def _hash_groups(column: Any) -> npt.NDArray[np.uint64]:
    if column.null_count == len(column):
        return np.zeros(len(column), np.uint64)
    values = (None if value is None else xxhash.xxh3_64_intdigest(value.encode()) or 1 for value in column.to_pylist())
    return np.fromiter((value or 0 for value in values), np.uint64, len(column))
