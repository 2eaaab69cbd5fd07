"""From staged partitions to the files of a built folder: the shards of every split, and rejected.jsonl."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlmdata.dedup import Contamination, Duplicates, EvaluationImages
from vlmdata.errors import DataError
from vlmdata.manifest import SplitEntry
from vlmdata.merged_rows import MergedRows
from vlmdata.merging import Merges
from vlmdata.sample import Rejection
from vlmdata.shard_writer import SplitWriter
from vlmdata.sources.stamps import FileStamp
from vlmdata.stage import (
    OriginalChangedError,
    StagedFiles,
    StagedSet,
    StagedSplitWriter,
    open_staged,
    read_marker,
)

__all__ = ["collect_stamps", "write_rejections", "write_splits"]


def write_splits(
    ready: Path,
    stage: Path,
    staged: StagedSet,
    merges: Merges,
    split_of: npt.NDArray[np.int64],
    names: Sequence[str],
    shard_bytes: int,
) -> dict[str, SplitEntry]:
    """Write the kept rows, in the order of the input, to the shards of their splits.

    Args:
        ready: where the splits' folders are put together.
        stage: where the staged partitions lie.
        staged: R staged rows.
        merges: rows that become turns of others.
        split_of: (R,) an index of `names`, or -1 for rows that are left out.
        names: of the splits.
        shard_bytes: size at which a new shard is begun.

    Raises:
        OriginalChangedError: an image's file is not what it was when it was prepared.
    """
    merged = MergedRows(stage, staged, merges)
    with ExitStack() as stack:
        writers = [stack.enter_context(StagedSplitWriter(ready, name, shard_bytes=shard_bytes)) for name in names]
        try:
            place = 0
            for partition in staged.partitions:
                for batch in open_staged(StagedFiles(stage, partition.number)):
                    wanted = split_of[place : place + batch.num_rows]
                    _hand_out(merged.continue_rows(batch, place), wanted, writers)
                    place += batch.num_rows
            return {writer.name: writer.close() for writer in writers}
        except OriginalChangedError as error:
            _forget(stage, staged, error.path)
            raise


def _hand_out(batch: pa.RecordBatch, split_of: npt.NDArray[np.int64], writers: Sequence[SplitWriter]) -> None:
    """Give each split the indices of its rows: what it is given is held until a shard is full."""
    for i, writer in enumerate(writers):
        chosen = np.flatnonzero(split_of == i)
        if len(chosen):
            writer.write_batch(batch, chosen)


def _forget(stage: Path, staged: StagedSet, path: str) -> None:
    """Have the next build prepare again what shows a file, though its size and its time may be what they were."""
    for partition in staged.partitions:
        files = StagedFiles(stage, partition.number)
        marker = read_marker(files)
        if marker is not None and any(stamp.path == path for stamp in marker.stamps):
            files.marker.unlink()


def write_rejections(
    path: Path,
    stage: Path,
    staged: StagedSet,
    duplicates: Duplicates,
    contamination: Contamination,
    evaluation: Sequence[EvaluationImages],
    merges: Merges,
) -> Counter[str]:
    """Write rejected.jsonl in the order of the input, and return how many rows each reason took."""
    counts: Counter[str] = Counter()
    dropped = heapq.merge(
        _describe_duplicates(staged, duplicates),
        _describe_contaminated(staged, contamination, evaluation),
        _describe_merged(staged, merges),
        key=lambda item: item[0],
    )
    with path.open("w", encoding="utf-8") as file:
        for rejection in _merge(stage, staged, dropped):
            if rejection.level == "row":
                counts[rejection.reason] += 1
            file.write(json.dumps(rejection.to_json(), ensure_ascii=False) + "\n")
    return counts


def _merge(stage: Path, staged: StagedSet, dropped: Iterator[tuple[int, Rejection]]) -> Iterator[Rejection]:
    """Yield the rejections of each partition and, by their places among all staged rows, the rows dropped later."""
    waiting = next(dropped, None)
    for i, partition in enumerate(staged.partitions):
        marker = read_marker(StagedFiles(stage, partition.number))
        if marker is None:
            raise DataError(f"{stage}: staged partition {partition.number} changed while the build was running")
        end = int(staged.first_row[i]) + partition.kept
        mine = marker.rejections
        while waiting is not None and waiting[0] < end:
            mine.append(waiting[1])
            waiting = next(dropped, None)
        yield from sorted(mine, key=lambda rejection: rejection.row)


def _describe_duplicates(staged: StagedSet, duplicates: Duplicates) -> Iterator[tuple[int, Rejection]]:
    for place, kept_place, reason, distance in duplicates:
        source, row, row_id = staged.name(place)
        how = f", distance {distance} of 256" if reason == "duplicate_near" else ""
        yield place, Rejection(source, row, "dedup", reason, f"of {_call(staged, kept_place)}{how}", row_id)


def _describe_merged(staged: StagedSet, merges: Merges) -> Iterator[tuple[int, Rejection]]:
    for place, host in zip(merges.row.tolist(), merges.host.tolist(), strict=True):
        source, row, row_id = staged.name(place)
        detail = f"into the conversation of {_call(staged, host)}"
        yield place, Rejection(source, row, "merge", "merged", detail, row_id)


def _call(staged: StagedSet, place: int) -> str:
    """Name a kept row by its id, and where that does not say it by its place in the input."""
    source, row, row_id = staged.name(place)
    return row_id if row_id == f"{source}:{row}" else f"{row_id} ({source}:{row})"


def _describe_contaminated(
    staged: StagedSet, contamination: Contamination, evaluation: Sequence[EvaluationImages]
) -> Iterator[tuple[int, Rejection]]:
    counts = np.diff(staged.signatures.row_offsets)
    for place, position, name, is_near, distance in contamination.describe(evaluation):
        source, row, row_id = staged.name(place)
        which = f"image {position + 1} of {counts[place]} is" if counts[place] > 1 else "is"
        likeness = f"nearly evaluation image {name}" if is_near else f"evaluation image {name}"
        how = f"distance {distance} of 256" if is_near else "equal pixels"
        yield place, Rejection(source, row, "dedup", "contaminated", f"{which} {likeness}, {how}", row_id)


def collect_stamps(stage: Path, partitions: Iterable[int]) -> Iterator[FileStamp]:
    """Yield the state of every image file that was looked for, each once."""
    seen: set[str] = set()
    for number in partitions:
        marker = read_marker(StagedFiles(stage, number))
        for stamp in marker.stamps if marker is not None else ():
            if stamp.path not in seen:
                seen.add(stamp.path)
                yield stamp
