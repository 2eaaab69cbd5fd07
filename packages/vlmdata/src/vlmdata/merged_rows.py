"""Staged rows with the turns of others that they are continued by."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlmdata.merging import Merges
from vlmdata.stage import STAGED_SCHEMA, StagedFiles, StagedSet, open_staged

__all__ = ["MergedRows"]

_TEXT_COLUMNS = ("messages", "references", "objects")
# Staged partitions that are kept open; they are mapped, so that only what is read of them takes memory.
_OPEN_PARTITIONS = 16


class MergedRows:
    """Puts conversations together while the staged rows pass by; texts alone are read again, never images.

    Args:
        stage: the folder of the staged partitions.
        staged: what is known of them.
        merges: which rows continue which.
    """

    def __init__(self, stage: Path, staged: StagedSet, merges: Merges) -> None:
        self._stage = stage
        self._staged = staged
        order = np.lexsort((merges.row, merges.host))
        self._rows = merges.row[order]
        self._hosts, self._first = np.unique(merges.host[order], return_index=True)
        self._opened: OrderedDict[int, tuple[list[pa.RecordBatch], npt.NDArray[np.int64]]] = OrderedDict()

    def continue_rows(self, batch: pa.RecordBatch, first_place: int) -> pa.RecordBatch:
        """Return a batch of staged rows in which those that are continued have all their turns.

        Args:
            batch: of a staged partition.
            first_place: of its first row, among all staged rows.
        """
        begin, end = np.searchsorted(self._hosts, [first_place, first_place + batch.num_rows]).tolist()
        if begin == end:
            return batch
        columns = {name: cast("list[Any]", batch.column(name).to_pylist()) for name in _TEXT_COLUMNS}
        for i in range(begin, end):
            at = int(self._hosts[i]) - first_place
            row = {name: columns[name][at] for name in _TEXT_COLUMNS}
            last = self._first[i + 1] if i + 1 < len(self._hosts) else len(self._rows)
            for place in self._rows[self._first[i] : last].tolist():
                row = _join(row, self._read(place))
            for name in _TEXT_COLUMNS:
                columns[name][at] = row[name]
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else batch.column(field.name)
            for field in STAGED_SCHEMA
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=STAGED_SCHEMA)

    def _read(self, place: int) -> dict[str, Any]:
        partition = int(np.searchsorted(self._staged.first_row, place, side="right")) - 1
        if partition not in self._opened:
            number = self._staged.partitions[partition].number
            batches = [batch.select(_TEXT_COLUMNS) for batch in open_staged(StagedFiles(self._stage, number))]
            ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)
            self._opened[partition] = batches, ends
            if len(self._opened) > _OPEN_PARTITIONS:
                self._opened.popitem(last=False)
        batches, ends = self._opened[partition]
        at = place - int(self._staged.first_row[partition])
        i = int(np.searchsorted(ends, at, side="right"))
        return dict(batches[i].slice(at - int(ends[i]) + batches[i].num_rows, 1).to_pylist()[0])


def _join(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return a conversation that goes on with the turns of another about the same pictures, which it shows already."""
    turns = [message for message in other["messages"] if message["role"] != "system"]
    asked = [part for part in turns[0]["content"] if part["type"] != "image"]
    return {
        "messages": [*row["messages"], {**turns[0], "content": asked}, *turns[1:]],
        # of the last turn, as everywhere
        "references": other["references"],
        "objects": _join_objects(row["objects"], other["objects"]),
    }


def _join_objects(left: dict[str, Any] | None, right: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the boxes of both, each once."""
    if left is None or right is None:
        return left if right is None else right
    names = ("bbox", "label", "image_index")
    known = list(zip(*(left[name] for name in names), strict=True))
    boxes = known + [box for box in zip(*(right[name] for name in names), strict=True) if box not in known]
    return {**dict(zip(names, map(list, zip(*boxes, strict=True)), strict=True)), "format": left["format"]}
