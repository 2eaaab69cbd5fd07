"""What a worker process does: one partition of raw rows becomes staged rows, signatures and rejections."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

from vlmdata.dedup.signatures import hash_texts
from vlmdata.formats import Placement, Reading, convert_row, encode_meta, fit_to_images, read_group, read_id
from vlmdata.images import ImageProblem, PreparedImage
from vlmdata.locations import copy_file
from vlmdata.sample import Problem, RawRow, Rejection, Sample, StoredImage
from vlmdata.schema import ImageInfoRow
from vlmdata.shard_writer import rows_to_batch
from vlmdata.sources.image_bytes import ImageLoader, LoadedImage
from vlmdata.sources.stamps import are_unchanged
from vlmdata.stage.conversations import hash_prompt, hash_system, list_spoken
from vlmdata.stage.originals import STAGED_SCHEMA, OriginalRow, StagedRow
from vlmdata.stage.prefetch import load_images
from vlmdata.stage.remembered import RememberedImages
from vlmdata.stage.staged import (
    SIGNATURE_SCHEMA,
    Marker,
    PartitionSummary,
    StagedFiles,
    Task,
    WorkSettings,
    read_marker,
)

__all__ = ["process_partition"]

# Rows are handed to Arrow when their images reach this size, so that a partition never stands in memory as a whole.
_FLUSH_BYTES = 16 << 20
# Pictures that several rows show are decoded once, within the reach of what a worker remembers.
_REMEMBERED = RememberedImages(limit_bytes=32 << 20)


def process_partition(task: Task, settings: WorkSettings) -> PartitionSummary:
    """Do one partition, unless a marker says that it was done from the same rows, options and image files.

    Raises:
        OSError: the staging folder cannot be written.
    """
    files = StagedFiles(settings.folder, task.number)
    digest = _digest_rows(task)
    key = xxhash.xxh3_128_hexdigest(f"{settings.key} {digest} {task.image_base} {task.reading!r}".encode())
    marker = read_marker(files)
    if marker is not None and marker.key == key and are_unchanged(marker.stamps):
        return marker.summary(task.number, was_done=True)
    files.marker.unlink(missing_ok=True)
    work = settings.work_files(task.number)
    marker = _Partition(task, settings, work).run(key, digest)
    if work.folder != files.folder:
        for name in ("rows", "signatures", "thumbnails"):
            copy_file(getattr(work, name), getattr(files, name))
    marker.write(files)
    work.position.unlink(missing_ok=True)
    return marker.summary(task.number, was_done=False)


def _digest_rows(task: Task) -> str:
    """Hash the raw rows by their values: neither object identities nor the order of a pickle's memo count."""
    digest = xxhash.xxh3_128(task.source.encode("utf-8", "surrogateescape"))
    for index, row in task.rows:
        digest.update(_ROW_ENCODER.encode([index, row]).encode())
    return digest.hexdigest()


def _encode_other(value: Any) -> str:
    return f"bytes {xxhash.xxh3_128_hexdigest(value)}" if isinstance(value, bytes) else repr(value)


_ROW_ENCODER = json.JSONEncoder(default=_encode_other)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture of a row, the name of its file, and where it lies if it stays there."""

    image: PreparedImage
    name: str | None
    original: OriginalRow | None


class _Partition:
    """The state of one partition while it is worked on."""

    def __init__(self, task: Task, settings: WorkSettings, files: StagedFiles) -> None:
        self._task = task
        self._settings = settings
        self._files = files
        self._loader = ImageLoader(settings.input, task.image_base, settings.images.max_image_bytes)
        self._rejections: list[Rejection] = []
        self._content = xxhash.xxh3_128()
        self._rows: list[StagedRow] = []
        self._row_bytes = 0
        self._signatures: list[dict[str, Any]] = []
        self._kept = 0
        self._images = 0

    def run(self, key: str, digest: str) -> Marker:
        """Work through the rows and write the staged files; the marker is for the caller to write."""
        self._content.update(digest.encode())
        with (
            self._files.position.open("wb", buffering=0) as position,
            self._files.thumbnails.open("wb") as thumbnails,
            pa.ipc.new_stream(str(self._files.rows), STAGED_SCHEMA) as stream,
        ):
            for at, sample, loaded in load_images(self._convert_all(), self._loader):
                os.pwrite(position.fileno(), struct.pack("<q", at), 0)
                prepared = self._prepare_all(sample, loaded)
                if isinstance(prepared, Problem):
                    self._reject(at, "images", prepared, sample.id)
                    continue
                placements = [[_place(shown.image) for shown in pages] for pages in prepared]
                if problem := fit_to_images(sample, placements, self._task.reading.texts.box_format):
                    self._reject(at, "formats", problem, sample.id)
                    continue
                shown = [each for pages in prepared for each in pages]
                thumbnails.writelines(each.image.thumbnail for each in shown)
                self._add(sample, shown, at)
                if self._row_bytes >= _FLUSH_BYTES:
                    self._flush(stream)
            self._flush(stream)
        with pa.ipc.new_stream(str(self._files.signatures), SIGNATURE_SCHEMA) as stream:
            stream.write_batch(pa.RecordBatch.from_pylist(self._signatures, schema=SIGNATURE_SCHEMA))
        return Marker(
            key=key,
            source=self._task.source,
            read=len(self._task.rows),
            kept=self._kept,
            images=self._images,
            input_digest=self._content.hexdigest(),
            rejections=sorted(self._rejections, key=lambda rejection: rejection.row),
            stamps=list(self._loader.stamps.values()),
        )

    def _reject(self, at: int, stage: str, problem: Problem, row_id: str | None = None) -> None:
        index = self._task.rows[at][0]
        rejection = Rejection(self._task.source, index, stage, problem.reason, problem.detail, row_id)
        self._rejections.append(rejection)

    def _convert_all(self) -> Iterator[tuple[int, Sample]]:
        """Yield the rows that make a sample, with their positions; the others are rejected here."""
        reading = self._task.reading
        for at, (index, row) in enumerate(self._task.rows):
            if at in self._task.poison:
                self._reject(at, "stage", Problem("worker_crashed", "the process that worked on this row died"))
            elif isinstance(row, Problem):
                self._reject(at, "sources", row)
            else:
                sample = _convert(row, index, self._task.source, reading)
                if isinstance(sample, Sample):
                    yield at, sample
                else:
                    self._reject(at, "formats", sample, read_id(row, index, self._task.source, reading))

    def _prepare_all(self, sample: Sample, loaded: list[LoadedImage | Problem]) -> list[list[_Shown]] | Problem:
        """Return the pages of each image."""
        prepared: list[list[_Shown]] = []
        for i, image in enumerate(loaded):
            if isinstance(image, Problem):
                return _at_image(image, i, len(loaded))
            content, outcome = _REMEMBERED.prepare(image.data, self._settings.images)
            self._content.update(content.encode())
            if isinstance(outcome, ImageProblem):
                which = f"{image.name!r:.200}: " if image.name else ""
                return _at_image(Problem(outcome.reason, which + outcome.detail), i, len(loaded))
            leaves = self._settings.leave_originals and len(outcome) == 1
            original = _find_original(outcome[0], image.file, content) if leaves else None
            prepared.append([_Shown(page, image.name, original) for page in outcome])
        return prepared

    def _add(self, sample: Sample, prepared: list[_Shown], at: int) -> None:
        if self._settings.keep_rows:
            stored = [
                StoredImage(b"" if each.original else each.image.data, each.name, _describe(each.image))
                for each in prepared
            ]
            row = sample.to_row(stored, encode_meta(sample))
            self._rows.append({**row, "originals": [each.original for each in prepared]})
            self._row_bytes += sum(len(image.data) for image in stored)
        texts = [text for message in sample.messages for text in list_spoken(message)]
        raw = self._task.rows[at][1]
        self._signatures.append(
            {
                "row": sample.row,
                "id": sample.id,
                "group": None if isinstance(raw, Problem) else read_group(raw, self._task.reading),
                "text_hash": hash_texts(texts),
                "text_length": sum(map(len, texts)),
                "prompt_hash": hash_prompt(sample.messages),
                "system_hash": hash_system(sample.messages),
                "images": [_sign(each.image) for each in prepared],
            }
        )
        self._kept += 1
        self._images += len(prepared)

    def _flush(self, stream: pa.RecordBatchStreamWriter) -> None:
        if self._rows:
            stream.write_batch(rows_to_batch(self._rows, STAGED_SCHEMA))
        self._rows, self._row_bytes = [], 0


def _convert(row: RawRow, index: int, source: str, reading: Reading) -> Sample | Problem:
    try:
        wanted = reading.where.keeps(row) if reading.where is not None else True
        if isinstance(wanted, Problem):
            return wanted
        if not wanted:
            return Problem("filtered", f"not {reading.where.text}" if reading.where is not None else "")
        return convert_row(row, index, source, reading)
    except RecursionError:
        return Problem("too_deep", "values are nested too deeply")


def _at_image(problem: Problem, position: int, count: int) -> Problem:
    return problem if count == 1 else Problem(problem.reason, f"image {position + 1} of {count}: {problem.detail}")


def _find_original(image: PreparedImage, file: str | None, content: str) -> OriginalRow | None:
    """Where the bytes of a picture are to be had again: in its local file, if that is what is stored."""
    if file is None or image.action not in ("stored", "stripped"):
        return None
    strip = image.format if image.action == "stripped" else None
    return {"path": file, "digest": bytes.fromhex(content), "size": len(image.data), "strip": strip}


def _place(image: PreparedImage) -> Placement:
    original, stored = (image.original_width, image.original_height), (image.width, image.height)
    return Placement(original, stored, image.content_box)


def _describe(image: PreparedImage) -> ImageInfoRow:
    return {
        "original_width": image.original_width,
        "original_height": image.original_height,
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "action": image.action,
        "window": image.window,
        "frame": image.frame,
        "salvaged": image.salvaged,
        "note": image.note or None,
        "pixel_hash": image.pixel_hash,
        "phash": image.phash.hex(),
    }


def _sign(image: PreparedImage) -> dict[str, Any]:
    return {
        "pixel_hash": bytes.fromhex(image.pixel_hash),
        "phash": image.phash,
        "is_flat": image.is_flat,
        "is_salvaged": image.salvaged,
        "original_pixels": image.original_width * image.original_height,
    }
