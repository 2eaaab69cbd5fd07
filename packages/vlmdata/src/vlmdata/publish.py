"""From staged partitions to the files of a built folder: the shards of every split, and rejected.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlmdata.dedup import Duplicates
from vlmdata.errors import DataError
from vlmdata.manifest import SplitEntry
from vlmdata.sample import Rejection
from vlmdata.shard_writer import SplitWriter
from vlmdata.shards import open_shard
from vlmdata.sources.image_bytes import FileStamp
from vlmdata.stage import StagedFiles, StagedSet, read_marker

__all__ = ["collect_stamps", "write_rejections", "write_splits"]


def write_splits(
    ready: Path, stage: Path, staged: StagedSet, split_of: npt.NDArray[np.int64], names: Sequence[str], shard_bytes: int
) -> dict[str, SplitEntry]:
    """Write the kept rows, in the order of the input, to the shards of their splits.

    Args:
        ready: where the splits' folders are put together.
        stage: where the staged partitions lie.
        staged: R staged rows.
        split_of: (R,) an index of `names`, or -1 for rows that are left out.
        names: of the splits.
        shard_bytes: size at which a new shard is begun.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(SplitWriter(ready, name, shard_bytes=shard_bytes)) for name in names]
        place = 0
        for partition in staged.partitions:
            for batch in open_shard(StagedFiles(stage, partition.number).rows):
                wanted = split_of[place : place + batch.num_rows]
                place += batch.num_rows
                for i, writer in enumerate(writers):
                    chosen = np.flatnonzero(wanted == i)
                    if len(chosen) == batch.num_rows:
                        writer.write_batch(batch)
                    elif len(chosen):
                        writer.write_batch(batch.take(chosen))
        return {writer.name: writer.close() for writer in writers}


def write_rejections(path: Path, stage: Path, staged: StagedSet, duplicates: Duplicates) -> Counter[str]:
    """Write rejected.jsonl in the order of the input, and return how many rows each reason took."""
    counts: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as file:
        for rejection in _merge(stage, staged, duplicates):
            if rejection.level == "row":
                counts[rejection.reason] += 1
            file.write(json.dumps(rejection.to_json(), ensure_ascii=False) + "\n")
    return counts


def _merge(stage: Path, staged: StagedSet, duplicates: Duplicates) -> Iterator[Rejection]:
    bounds = np.searchsorted(duplicates.row, [*staged.first_row.tolist(), np.iinfo(np.int64).max])
    found = iter(duplicates)
    for i, partition in enumerate(staged.partitions):
        marker = read_marker(StagedFiles(stage, partition.number))
        if marker is None:
            raise DataError(f"{stage}: staged partition {partition.number} changed while the build was running")
        dropped = [_describe(staged, *next(found)) for _ in range(int(bounds[i + 1] - bounds[i]))]
        yield from sorted([*marker.rejections, *dropped], key=lambda rejection: rejection.row)


def _describe(staged: StagedSet, place: int, kept_place: int, reason: str, distance: int) -> Rejection:
    source, row, row_id = staged.name(place)
    kept_source, kept_row, kept_id = staged.name(kept_place)
    place_of_kept = f"{kept_source}:{kept_row}"
    who = kept_id if kept_id == place_of_kept else f"{kept_id} ({place_of_kept})"
    how = f", distance {distance} of 256" if reason == "duplicate_near" else ""
    return Rejection(source, row, "dedup", reason, f"of {who}{how}", row_id)


def collect_stamps(stage: Path, partitions: Iterable[int]) -> Iterator[FileStamp]:
    """Yield the state of every image file that was looked for, each once."""
    seen: set[str] = set()
    for number in partitions:
        marker = read_marker(StagedFiles(stage, number))
        for stamp in marker.stamps if marker is not None else ():
            if stamp.path not in seen:
                seen.add(stamp.path)
                yield stamp
