"""Checks: raw inputs as a build would take them, without writing a folder; and a built folder, to the last image."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vlmdata.build_config import BuildConfig
from vlmdata.decontamination import open_evaluation_sets, prepare_evaluation
from vlmdata.disk import explain_disk_errors
from vlmdata.errors import DataError
from vlmdata.locations import locator
from vlmdata.manifest import Counts
from vlmdata.pipeline import check_rejects, plan_inputs, prepare_inputs, settle_rows
from vlmdata.shards import Split, open_folder
from vlmdata.sources import open_sources
from vlmdata.stage import PartitionSummary

__all__ = ["check_folder", "check_inputs"]

_SHOWN_PROBLEMS = 20


def check_inputs(
    config: BuildConfig,
    *,
    rejected: Path | None,
    on_partition: Callable[[PartitionSummary], None],
    on_note: Callable[[str], None],
) -> Counts:
    """Read, prepare and compare all rows as a build would, and say what would be kept.

    Args:
        config: of the build; its `out` is not touched.
        rejected: where to write the lines of rejected.jsonl, if anywhere.
        on_partition: called with each partition as it is done.
        on_note: called with what was detected or chosen.

    Raises:
        ToolkitError: as the build would.
    """
    scratch = config.output.scratch or Path(tempfile.gettempdir())
    with (
        explain_disk_errors(scratch),
        tempfile.TemporaryDirectory(prefix="vlmdata-check-", dir=scratch) as name,
    ):
        sources = open_sources(config.inputs, config.input)
        sets = open_evaluation_sets(config.dedup.against, config.columns.image, config.input)
        stage = Path(name)
        inputs = plan_inputs(sources, config, on_note)
        evaluation = prepare_evaluation(
            sets, config, stage, on_partition=on_partition, on_note=lambda line: on_note(f"against {line}")
        )
        prepared = prepare_inputs(inputs, config, stage, keep_rows=False, on_partition=on_partition)
        report = stage / "rejected.jsonl"
        settled = settle_rows(config, stage, prepared.partitions, report, evaluation.parts)
        if rejected is not None:
            shutil.copyfile(report, rejected)
        check_rejects(settled.counts, config.output.max_reject_rate, rejected)
        return settled.counts


def check_folder(folder: str | Path, *, on_rows: Callable[[int], None]) -> str:
    """Verify checksums, counts and columns of a built folder, and decode every image.

    Returns:
        A line that says what was checked.

    Raises:
        DataError: with what is wrong, all of it up to a limit.
    """
    built = open_folder(folder, checksums=True)
    problems: list[str] = []
    images = 0
    for split in built.splits.values():
        images += _check_split(split, problems, on_rows)
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(f"{locator(folder)}: " + "; ".join(problems[:_SHOWN_PROBLEMS]) + more)
    rows = ", ".join(f"{name} {split.num_rows}" for name, split in built.splits.items())
    return f"{locator(folder)}: whole; {rows} rows; checksums agree, {images} images decode"


def _check_split(split: Split, problems: list[str], on_rows: Callable[[int], None]) -> int:
    from PIL import Image

    images = 0
    for row in split.iterate(["id", "messages", "images", "image_info"]):
        where = f"split {split.name!r}, row {row['id']!r}"
        shown = sum(part["type"] == "image" for message in row["messages"] for part in message["content"])
        if not shown == len(row["images"]) == len(row["image_info"]):
            problems.append(f"{where}: {shown} image parts, {len(row['images'])} images")
        for stored, info in zip(row["images"], row["image_info"], strict=False):
            images += 1
            try:
                with Image.open(io.BytesIO(stored["bytes"])) as image:
                    image.load()
                    found = (image.width, image.height, image.format)
            # whatever a decoder raises on a damaged file is the finding
            except Exception as error:
                problems.append(f"{where}: image does not decode: {error}")
                continue
            if found != (info["width"], info["height"], info["format"]):
                problems.append(f"{where}: image is {found}, its row says otherwise")
        on_rows(1)
    return images
