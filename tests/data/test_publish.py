"""What is handed to the writers of splits: all rows once, in order, and held without copies or a view for each run."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlmdata.publish import _hand_out
from vlmdata.shard_writer import BATCH_ROWS, SplitWriter, rows_to_batch
from vlmdata.shards import open_shard

IMAGE_BYTES = 2000


def make_batch(first: int, rows: int) -> pa.RecordBatch:
    image = {"bytes": bytes(IMAGE_BYTES), "path": None}
    return rows_to_batch(
        [
            {"id": str(number), "messages": [], "images": [image], "references": [], "image_info": []}
            for number in range(first, first + rows)
        ]
    )


def read_ids(folder: Path, name: str) -> list[int]:
    shards = sorted((folder / name).glob("*.arrow"))
    return [int(row) for shard in shards for batch in open_shard(shard) for row in batch.column("id").to_pylist()]


@pytest.mark.parametrize(
    "split_of", [[0, 0, 1, -1, -1, 0, 1, 1], [0] * 8, [-1] * 8, [1, 0, 1, 0, 1, 0, 1, 0], [-1, 0, 0, 0, 0, 0, 0, -1]]
)
def test_splits_get_their_rows_once_and_in_order(tmp_path: Path, split_of: list[int]) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(SplitWriter(tmp_path, name, shard_bytes=6 * IMAGE_BYTES)) for name in "ab"]
        for first in range(0, 32, 8):
            _hand_out(make_batch(first, 8), np.array(split_of), writers)
        kept = [writer.close().rows for writer in writers]
    for i, name in enumerate("ab"):
        expected = [row for row in range(32) if split_of[row % 8] == i]
        assert read_ids(tmp_path, name) == expected
        assert kept[i] == len(expected)


def test_a_shard_that_is_not_full_holds_its_rows_by_their_indices(tmp_path: Path) -> None:
    batches = [make_batch(first, BATCH_ROWS) for first in range(0, 8 * BATCH_ROWS, BATCH_ROWS)]
    # rows of two splits in turn: of each batch one run for every row
    split_of = np.arange(BATCH_ROWS) % 2
    with ExitStack() as stack:
        writers = [stack.enter_context(SplitWriter(tmp_path, name)) for name in "ab"]
        allocated, objects = pa.total_allocated_bytes(), count_batches()
        for batch in batches:
            _hand_out(batch, split_of, writers)
        # a copy of the images would be as large as they are, a view of each run an object of some kilobytes
        assert pa.total_allocated_bytes() - allocated < len(batches) * BATCH_ROWS * IMAGE_BYTES / 10
        assert count_batches() - objects <= 2 * len(batches)
        for writer in writers:
            writer.close()
    assert read_ids(tmp_path, "a") == list(range(0, 8 * BATCH_ROWS, 2))
    assert read_ids(tmp_path, "b") == list(range(1, 8 * BATCH_ROWS, 2))


def count_batches() -> int:
    gc.collect()
    return sum(type(each) in (pa.RecordBatch, pa.Table) for each in gc.get_objects())
