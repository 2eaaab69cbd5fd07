"""A build, from inputs to a whole folder: read, prepare, compare, split, write, and account for every row."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmdata.build_config import BuildConfig
from vlmdata.decontamination import Evaluation, open_evaluation_sets, prepare_evaluation
from vlmdata.disk import explain_disk_errors
from vlmdata.errors import DataError
from vlmdata.locations import copy_file, is_remote, kind_of, locator
from vlmdata.manifest import Manifest, SplitEntry, write_json_atomically
from vlmdata.output_folder import (
    check_output,
    clear_work,
    commit,
    has_stamps_unchanged,
    lock_output,
    touch_manifest,
    write_stamps,
)
from vlmdata.pipeline import (
    Prepared,
    Settled,
    check_rejects,
    hash_json,
    list_versions,
    plan_inputs,
    prepare_inputs,
    settle_rows,
)
from vlmdata.publish import collect_stamps, write_splits
from vlmdata.report import REPORT_NAME, ReportInputs, write_report
from vlmdata.set_files import write_set_files
from vlmdata.shards import BuiltFolder
from vlmdata.sources import open_sources
from vlmdata.sources.stamps import stamp_file
from vlmdata.stage import PartitionSummary, StagedFiles
from vlmdata.stats import STATS_NAME, compute_stats, count_splits

__all__ = ["BuildReport", "build_folder"]


@dataclass(slots=True, kw_only=True)
class BuildReport:
    """How a build went.

    Attributes:
        out: the built folder.
        manifest: what it holds.
        seconds: what the build took.
        partitions: how many the rows were prepared in.
        partitions_reused: of an earlier build, not done again.
        was_unchanged: whether the folder was whole already and only its manifest was touched.
        notes: what was detected and chosen, a line each.
        remark: what is kept for the next build, in words.
    """

    out: Path
    manifest: Manifest
    seconds: float
    partitions: int = 0
    partitions_reused: int = 0
    was_unchanged: bool = False
    notes: list[str] = field(default_factory=list)
    remark: str = ""


def _ignore(_: object) -> None:
    """Say nothing."""


def build_folder(
    config: BuildConfig,
    *,
    on_partition: Callable[[PartitionSummary], None] = _ignore,
    on_note: Callable[[str], None] = _ignore,
) -> BuildReport:
    """Build `config.out` from the inputs.

    A build that was interrupted goes on where it stopped; a folder that is whole and unchanged is left as it is.

    Args:
        config: everything there is to choose.
        on_partition: called with each partition as it is done, in any order.
        on_note: called with a line on what was detected or chosen.

    Raises:
        ConfigError: options that do not fit the data or the folder that is there.
        DataError: an input that cannot be read, nothing left to keep, or more rejected rows than allowed.
        MissingDependencyError: an input needs an extra that is not installed.
        ResourceError: the disk, the network or the workers gave out; what was done stays for the next build.
    """
    started = time.monotonic()
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        on_note(line)

    with explain_disk_errors(config.out, kept="; what is done is kept for the next build"):
        before = check_output(config.out, config.content_values(), overwrite=config.output.overwrite)
        sources = open_sources(config.inputs, config.input)
        sets = open_evaluation_sets(config.dedup.against, config.columns.image, config.input)
        files = [path for source in sources for path in source.files] + [path for each in sets for path in each.files]
        if before is not None:
            if has_stamps_unchanged(config.out, files) and touch_manifest(config.out, before):
                note(f"{locator(config.out)} is whole and its inputs are unchanged")
                seconds = time.monotonic() - started
                return BuildReport(out=config.out, manifest=before, seconds=seconds, was_unchanged=True, notes=notes)
            note(f"{locator(config.out)} was built before, but its inputs or shards have changed since: building again")
        inputs = plan_inputs(sources, config, note)
        with lock_output(config.out, config.output.scratch) as stage:
            evaluation = prepare_evaluation(
                sets, config, stage, on_partition=on_partition, on_note=lambda line: note(f"against {line}")
            )
            prepared = prepare_inputs(inputs, config, stage, keep_rows=True, on_partition=on_partition)
            manifest, remark = _finish(prepared, evaluation, files, stage, config, note)
    return BuildReport(
        out=config.out,
        manifest=manifest,
        seconds=time.monotonic() - started,
        partitions=len(prepared.partitions),
        partitions_reused=sum(each.was_done for each in prepared.partitions),
        notes=notes,
        remark=remark,
    )


def _finish(
    prepared: Prepared,
    evaluation: Evaluation,
    files: Sequence[Path],
    stage: Path,
    config: BuildConfig,
    note: Callable[[str], None],
) -> tuple[Manifest, str]:
    """Write the folder beside its place and move it in, the manifest last; say what is kept for the next build."""
    ready = stage / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    rejected = ready / "rejected.jsonl"
    settled = settle_rows(config, stage, prepared.partitions, rejected, evaluation.parts)
    try:
        check_rejects(settled.counts, config.output.max_reject_rate, config.out / rejected.name)
    except DataError:
        if kind_of(config.out / "manifest.json") is None:
            copy_file(rejected, config.out / rejected.name)
        raise
    names = ["train", *config.split.fractions]
    entries = write_splits(
        ready, stage, settled.staged, settled.merges, settled.split_of, names, config.output.shard_bytes
    )
    write_set_files(ready, entries)
    for name, entry in entries.items():
        if not entry.rows:
            note(f"split {name!r} has no rows")
    repeated, example = settled.staged.repeated_ids(settled.split_of >= 0)
    if repeated:
        note(f"ids are not unique: {repeated} kept rows have one that another has too, such as {example!r:.100}")
    manifest = _describe(prepared, evaluation, settled, entries, config)
    folder = BuiltFolder(ready, manifest)
    figures = count_splits(folder)
    write_json_atomically(ready / STATS_NAME, compute_stats(folder, figures))
    report = ReportInputs(
        folder=folder, splits=figures, settled=settled, stage=stage, inputs=prepared.inputs, config=config
    )
    write_report(ready / REPORT_NAME, report)
    stamps = [stamp_file(str(path.resolve())) for path in files]
    images = collect_stamps(stage, (each.number for each in prepared.partitions))
    write_stamps(config.out, [*stamps, *images, *evaluation.stamps])
    commit(config.out, ready, manifest)
    kept: set[str] = set()
    if config.output.keep_stage and not is_remote(config.out):
        kept = {path.name for each in prepared.partitions for path in StagedFiles(stage, each.number).paths}
        kept.update(pictures.name for pictures in evaluation.staged)
    for pictures, useful in evaluation.staged.items():
        clear_work(pictures, useful)
    size_bytes = clear_work(stage, kept)
    remark = f"{stage} keeps {size_bytes / 1e6:.1f} MB for the next build; delete it freely, or give --no-keep-stage"
    return manifest, remark if kept else ""


def _describe(
    prepared: Prepared,
    evaluation: Evaluation,
    settled: Settled,
    entries: Mapping[str, SplitEntry],
    config: BuildConfig,
) -> Manifest:
    inputs = []
    for source, reading in prepared.inputs:
        mine = [each for each in prepared.partitions if each.source == source.name]
        inputs.append(
            {
                "path": source.name,
                "kind": source.kind,
                "format": reading.format,
                "rows": sum(each.read for each in mine),
                "digest": hash_json([each.input_digest for each in mine]),
            }
        )
    content = config.content_values()
    # where the inputs lie is not what they are
    portable = {name: value for name, value in content.items() if name not in ("inputs", "image_root", "against")}
    digests = [each["digest"] for each in evaluation.described]
    return Manifest(
        splits=entries,
        counts=settled.counts,
        fingerprint=hash_json([portable, inputs, digests, list_versions()]),
        config=content,
        versions=list_versions(),
        inputs=tuple(inputs),
        against=evaluation.described,
    )
