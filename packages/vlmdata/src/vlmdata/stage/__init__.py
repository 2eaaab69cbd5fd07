"""Partitions of input rows, prepared by a pool of processes and staged on disk until rows are compared."""

from __future__ import annotations

from vlmdata.stage.cluster import run_on_cluster
from vlmdata.stage.gather import StagedSet, gather_signatures
from vlmdata.stage.originals import STAGED_SCHEMA, OriginalChangedError, StagedSplitWriter, open_staged, take_in
from vlmdata.stage.partitions import cut_partitions
from vlmdata.stage.pool import count_workers, run_partitions
from vlmdata.stage.staged import PartitionSummary, StagedFiles, Task, WorkSettings, read_marker

__all__ = [
    "STAGED_SCHEMA",
    "OriginalChangedError",
    "PartitionSummary",
    "StagedFiles",
    "StagedSet",
    "StagedSplitWriter",
    "Task",
    "WorkSettings",
    "count_workers",
    "cut_partitions",
    "gather_signatures",
    "open_staged",
    "read_marker",
    "run_on_cluster",
    "run_partitions",
    "take_in",
]
