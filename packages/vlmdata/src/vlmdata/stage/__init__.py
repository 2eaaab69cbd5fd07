"""Partitions of input rows, prepared by a pool of processes and staged on disk until rows are compared."""

from __future__ import annotations

from vlmdata.stage.gather import StagedSet, gather_signatures
from vlmdata.stage.partitions import cut_partitions
from vlmdata.stage.pool import count_workers, run_partitions
from vlmdata.stage.staged import PartitionSummary, StagedFiles, WorkSettings, read_marker

__all__ = [
    "PartitionSummary",
    "StagedFiles",
    "StagedSet",
    "WorkSettings",
    "count_workers",
    "cut_partitions",
    "gather_signatures",
    "read_marker",
    "run_partitions",
]
