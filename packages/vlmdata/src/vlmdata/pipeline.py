"""The parts of a build that a check shares: read and prepare all rows, then decide which are kept and where they go."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.build_config import BuildConfig
from vlmdata.dedup import (
    Contamination,
    Duplicates,
    EvaluationImages,
    ImageLinks,
    find_contamination,
    find_duplicates,
    link_images,
)
from vlmdata.errors import ConfigError, DataError
from vlmdata.formats import Reading, plan_reading
from vlmdata.locations import is_remote
from vlmdata.manifest import STAGE_NAME, Counts
from vlmdata.merging import Merges, find_merges
from vlmdata.plain_arrow import leave_pandas_out
from vlmdata.publish import write_rejections
from vlmdata.sample import Problem
from vlmdata.sources import Source
from vlmdata.splits import assign_splits
from vlmdata.stage import (
    PartitionSummary,
    StagedSet,
    Task,
    WorkSettings,
    count_workers,
    cut_partitions,
    gather_signatures,
    run_on_cluster,
    run_partitions,
)

__all__ = [
    "Prepared",
    "Settled",
    "check_rejects",
    "hash_json",
    "list_versions",
    "plan_inputs",
    "prepare_inputs",
    "settle_rows",
]

# Part of every partition's key: a change in what is staged makes older staged files useless.
_STAGE_VERSION = 7
# How many rows of an input are looked at to tell its format and columns.
_HEAD_ROWS = 64
# Reasons that are choices, not defects of the data: they do not count towards --max-reject-rate.
_CHOSEN_REASONS = frozenset(("filtered", "duplicate_exact", "duplicate_near", "contaminated", "merged"))


@dataclass(frozen=True, slots=True)
class Prepared:
    """The inputs with how each is read, and the staged partitions, both in order."""

    inputs: Sequence[tuple[Source, Reading]]
    partitions: Sequence[PartitionSummary]


@dataclass(frozen=True, slots=True)
class Settled:
    """The staged rows with their splits.

    Attributes:
        staged: R staged rows.
        split_of: (R,) 0 for train, 1 for the first split set aside and so on, -1 for rows that are dropped.
        counts: of all rows that were read.
        evaluation: the pictures that rows were held against.
        contamination: the rows that were dropped because they show a picture of an evaluation set.
        duplicates: the rows that were dropped for others.
        merges: the rows that became turns of others.
        links: which images are the same, where that was worked out.
    """

    staged: StagedSet
    split_of: npt.NDArray[np.int64]
    counts: Counts
    evaluation: Sequence[EvaluationImages]
    contamination: Contamination
    duplicates: Duplicates
    merges: Merges
    links: ImageLinks | None

    @property
    def is_used(self) -> npt.NDArray[np.bool_]:
        """(R,) rows whose questions and answers are in the folder, be it as turns of another row."""
        used = self.split_of >= 0
        used[self.merges.row] = True
        return used


def list_versions() -> dict[str, str]:
    """Return the versions of everything that has a say in the bytes of a shard."""
    return {name: version(name) for name in ("vlmdata", "pillow", "pyarrow", "pyvips-binary", "numpy", "xxhash")}


def hash_json(value: Any) -> str:
    """Return a 128-bit hash, as hex, of a value that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def plan_inputs(
    sources: Sequence[Source], config: BuildConfig, on_note: Callable[[str], None]
) -> list[tuple[Source, Reading]]:
    """Look at the first rows of every input and decide how it is read; inputs without rows are left out.

    Args:
        sources: the opened inputs.
        config: of the build.
        on_note: called with a line on each input: what it is and how it is read.

    Raises:
        ConfigError: columns that are not there, of all inputs at once.
        DataError: an input that cannot be read.
    """
    planned: list[tuple[Source, Reading]] = []
    problems: list[str] = []
    for source in sources:
        looked_at = [row for _, row in islice(source.read(), _HEAD_ROWS)]
        head = [row for row in looked_at if not isinstance(row, Problem)]
        if not looked_at:
            on_note(f"{source.name}: {source.kind}; it has no rows")
            continue
        if not head:
            details = {row.reason: row.detail for row in reversed(looked_at) if isinstance(row, Problem)}
            reasons = "; ".join(f"{reason}: {detail}" for reason, detail in sorted(details.items()))
            raise DataError(f"{source.name}: none of the first {len(looked_at)} rows can be read ({reasons})")
        try:
            reading = plan_reading(
                head,
                config.input,
                config.columns,
                config.split.group_by,
                texts=config.texts,
                description=source.description,
            )
        except ConfigError as error:
            problems.extend(f"{source.name}: {problem}" for problem in error.problems)
            continue
        on_note(f"{source.name}: {source.kind}; {reading.describe()}")
        planned.append((source, reading))
    if planned and all(reading.unused_options for _, reading in planned):
        # options that fit no input are a mistake
        problems.extend(f"{source.name}: {each}" for source, reading in planned for each in reading.unused_options)
    if problems:
        raise ConfigError(problems)
    if planned and (sizes := config.images.describe_family()) is not None:
        on_note(sizes)
    return planned


def prepare_inputs(
    inputs: Sequence[tuple[Source, Reading]],
    config: BuildConfig,
    stage: Path,
    *,
    keep_rows: bool,
    on_partition: Callable[[PartitionSummary], None],
) -> Prepared:
    """Read all rows and stage what becomes of them in the folder `stage`.

    Args:
        inputs: from `plan_inputs`.
        config: of the build.
        stage: an existing folder.
        keep_rows: whether to stage the shard rows too; signatures and rejections always are.
        on_partition: called with each partition as it is done, in any order.

    Raises:
        DataError: an input that turns out to be broken.
        MissingDependencyError: the engine is not installed.
        ResourceError: worker processes do not start or die without end, or the cluster cannot work.
    """
    leave_pandas_out()
    settings = WorkSettings(
        folder=stage,
        key=hash_json([_STAGE_VERSION, list_versions(), config.stage_values(), keep_rows]),
        input=config.input,
        images=config.images,
        keep_rows=keep_rows,
        # what a node of a cluster sees, this machine may not
        leave_originals=config.output.engine == "local",
    )
    partitions = []
    for summary in _run(cut_partitions(inputs), settings, config):
        on_partition(summary)
        partitions.append(summary)
    return Prepared(inputs, sorted(partitions, key=lambda each: each.number))


def _run(tasks: Iterator[Task], settings: WorkSettings, config: BuildConfig) -> Iterator[PartitionSummary]:
    options = config.output
    if options.engine == "local":
        return run_partitions(tasks, settings, count_workers(options.workers))
    shared: Path | None = None
    if is_remote(config.out) and options.scratch is None:
        # nodes that share no file system meet at the output
        shared = config.out / STAGE_NAME / settings.folder.name
    return run_on_cluster(
        tasks,
        settings,
        address=options.ray_address,
        at_once=options.workers,
        versions=list_versions(),
        shared=shared,
    )


def settle_rows(
    config: BuildConfig,
    stage: Path,
    partitions: Sequence[PartitionSummary],
    rejected: Path,
    evaluation: Sequence[EvaluationImages],
) -> Settled:
    """Drop contaminated rows and duplicates, assign splits, write rejected.jsonl, and account for every row."""
    staged = gather_signatures(stage, partitions)
    signatures = staged.signatures
    contamination = find_contamination(signatures, evaluation, config.dedup.near_distance)
    is_kept = np.ones(len(signatures.text_hash), np.bool_)
    is_kept[contamination.row] = False
    links: ImageLinks | None = None
    if config.split.fractions or config.dedup.dedup == "near":
        links = link_images(signatures, config.dedup.near_distance)
    known = links if config.dedup.dedup == "near" else None
    duplicates = find_duplicates(signatures, config.dedup, known, is_candidate=is_kept)
    is_kept[duplicates.row] = False
    merges = _merge_turns(staged, links, is_kept, config)
    is_kept[merges.row] = False
    reasons = write_rejections(rejected, stage, staged, duplicates, contamination, evaluation, merges)
    counts = Counts(
        read=sum(each.read for each in partitions),
        kept=int(is_kept.sum()),
        rejected=dict(sorted(reasons.items())),
    )
    if not counts.is_balanced():
        raise AssertionError(f"rows are lost: {counts}")
    split_of = np.zeros(len(is_kept), np.int64)
    if links is not None and config.split.fractions:
        fractions, seed = config.split.fractions, config.split.seed
        split_of = assign_splits(signatures, links, staged.group, is_kept, fractions, seed)
    split_of[~is_kept] = -1
    return Settled(staged, split_of, counts, evaluation, contamination, duplicates, merges, links)


def _merge_turns(
    staged: StagedSet, links: ImageLinks | None, is_kept: npt.NDArray[np.bool_], config: BuildConfig
) -> Merges:
    if not config.dedup.merge_turns:
        return Merges.none()
    links = links or link_images(staged.signatures, None)
    return find_merges(
        staged.signatures,
        links.picture,
        staged.system_hash,
        staged.prompt_hash,
        is_kept & staged.is_mergeable,
        max_rows=config.dedup.max_merged,
        max_chars=config.texts.max_chars,
    )


def check_rejects(counts: Counts, max_reject_rate: float, report: Path | None) -> None:
    """Make sure that enough of the data is usable.

    Raises:
        DataError: nothing is left, or more rows are rejected than allowed.
    """
    defects = sum(count for reason, count in counts.rejected.items() if reason not in _CHOSEN_REASONS)
    looked_at = counts.read - counts.rejected.get("filtered", 0)
    if counts.kept and defects <= max_reject_rate * looked_at:
        return
    if not counts.read:
        raise DataError("there are no rows in the inputs")
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(counts.rejected).most_common(5))
    where = f"; see {report}" if report is not None else "; --rejected FILE lists them"
    if counts.rejected.get("image_missing", 0) > defects / 2:
        where = f"; --image-root names the folder that image paths start from{where}"
    elif counts.rejected.get("image_outside_root", 0) > defects / 2:
        where = f"; --image-root names the folder that images lie in, --allow-outside-root permits any{where}"
    if not counts.kept:
        raise DataError(f"none of {counts.read} rows is left to keep ({reasons}){where}")
    raise DataError(
        f"{defects} of {looked_at} rows are rejected ({reasons}), more than --max-reject-rate {max_reject_rate:g} "
        f"allows{where}"
    )
