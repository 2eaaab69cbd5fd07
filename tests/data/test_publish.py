"""What is handed to the writers of splits: all rows once, in order, and no copies of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from vlmdata.publish import _hand_out


class Collected:
    """Stands for a writer, which holds what it is given until a shard is full."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)


@pytest.mark.parametrize(
    "split_of", [[0, 0, 1, -1, -1, 0, 1, 1], [0] * 8, [-1] * 8, [1, 0, 1, 0, 1, 0, 1, 0], [-1, 0, 0, 0, 0, 0, 0, -1]]
)
def test_splits_get_their_rows_as_views(split_of: list[int]) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(range(8))], names=["number"])
    writers = [Collected(), Collected()]
    _hand_out(batch, np.array(split_of), writers)
    for i, writer in enumerate(writers):
        rows = [row for each in writer.batches for row in each.column(0).to_pylist()]
        assert rows == [row for row, split in enumerate(split_of) if split == i]
        addresses = {each.column(0).buffers()[1].address for each in writer.batches}
        assert addresses <= {batch.column(0).buffers()[1].address}
