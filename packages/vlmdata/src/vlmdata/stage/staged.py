"""The files of a staged partition: its shard rows, what deduplication needs of them, and a marker written last.

    part-000000012.rows.arrow        kept rows; where images lie that are not in them
    part-000000012.signatures.arrow  for each of them its text hash, its group and the hashes of its images
    part-000000012.thumbnails        one small grey copy after the other, in the order of the images
    part-000000012.json              the marker: key, rejected rows, the state of every image file that was read

A marker whose key and files still fit means that the partition need not be done again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.config import ImageConfig, InputConfig
from vlmdata.formats import Reading
from vlmdata.manifest import write_json_atomically
from vlmdata.sample import Problem, RawRow, Rejection
from vlmdata.sources.stamps import FileStamp, stamp_file

__all__ = [
    "SIGNATURE_SCHEMA",
    "Marker",
    "PartitionSummary",
    "StagedFiles",
    "Task",
    "WorkSettings",
    "read_marker",
]

_IMAGE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("pixel_hash", pa.binary(16)),
    ("phash", pa.binary(32)),
    ("is_flat", pa.bool_()),
    ("is_salvaged", pa.bool_()),
    ("original_pixels", pa.int64()),
]
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("row", pa.int64()),
    ("id", pa.string()),
    ("group", pa.string()),
    ("text_hash", pa.binary(16)),
    ("text_length", pa.int64()),
    ("prompt_hash", pa.uint64()),
    ("system_hash", pa.binary(16)),
    ("images", pa.list_(pa.struct(_IMAGE_FIELDS))),
]
SIGNATURE_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """What is the same for every partition of a build.

    Attributes:
        folder: where staged files go.
        key: a hash of all options and versions that decide what becomes of a row.
        input: where images may lie.
        images: what is made of them.
        keep_rows: whether the rows themselves are staged; a check does without.
        leave_originals: whether images that are stored as they came stay in their local files until shards are written.
        node_folder: where the folder is remote, a local one for files until they are whole.
    """

    folder: Path
    key: str
    input: InputConfig
    images: ImageConfig
    keep_rows: bool = True
    leave_originals: bool = False
    node_folder: Path | None = None

    def work_files(self, number: int) -> StagedFiles:
        """Return where a partition's files are while it is worked on."""
        return StagedFiles(self.node_folder or self.folder, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A partition to do: rows of one input, with their indices in it.

    Attributes:
        number: of the partition, in the order of the input.
        source: the input's name.
        image_base: the folder that its relative image paths start from.
        reading: how its rows are read.
        rows: index and raw row, or why it could not be read.
        poison: positions in `rows` that ended the process that worked on them.
    """

    number: int
    source: str
    image_base: Path
    reading: Reading
    rows: tuple[tuple[int, RawRow | Problem], ...]
    poison: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSummary:
    """What became of a partition; `rejected` counts rows by reason."""

    number: int
    source: str
    read: int
    kept: int
    images: int
    rejected: Mapping[str, int]
    input_digest: str
    was_done: bool


@dataclass(frozen=True, slots=True)
class StagedFiles:
    """Where the files of one partition lie."""

    folder: Path
    number: int

    def _path(self, suffix: str) -> Path:
        return self.folder / f"part-{self.number:09d}.{suffix}"

    @property
    def rows(self) -> Path:
        """The kept rows, an Arrow stream of `originals.STAGED_SCHEMA`."""
        return self._path("rows.arrow")

    @property
    def signatures(self) -> Path:
        """An Arrow stream of `SIGNATURE_SCHEMA`, row for row beside `rows`."""
        return self._path("signatures.arrow")

    @property
    def thumbnails(self) -> Path:
        """The small grey copies of all images, joined."""
        return self._path("thumbnails")

    @property
    def marker(self) -> Path:
        """Written last: its existence means that the partition is done."""
        return self._path("json")

    @property
    def position(self) -> Path:
        """Holds the position of the row that is being worked on, for when the process dies."""
        return self._path("at")

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of a finished partition."""
        return self.rows, self.signatures, self.thumbnails, self.marker

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of the files that a marker vouches for."""
        return {path.name: stamp_file(str(path)).size for path in (self.rows, self.signatures, self.thumbnails)}


@dataclass(slots=True, kw_only=True)
class Marker:
    """What is known of a finished partition beside its rows."""

    key: str
    source: str
    read: int
    kept: int
    images: int
    input_digest: str
    rejections: list[Rejection]
    stamps: list[FileStamp]
    sizes: dict[str, int] = field(default_factory=dict)

    def summary(self, number: int, *, was_done: bool) -> PartitionSummary:
        """Return what the build counts."""
        return PartitionSummary(
            number=number,
            source=self.source,
            read=self.read,
            kept=self.kept,
            images=self.images,
            rejected=Counter(rejection.reason for rejection in self.rejections if rejection.level == "row"),
            input_digest=self.input_digest,
            was_done=was_done,
        )

    def write(self, files: StagedFiles) -> None:
        """Write the marker, after the files that it vouches for."""
        content: dict[str, Any] = {
            "key": self.key,
            "source": self.source,
            "read": self.read,
            "kept": self.kept,
            "images": self.images,
            "input_digest": self.input_digest,
            "rejections": [[r.row, r.stage, r.reason, r.detail, r.id, r.level] for r in self.rejections],
            "stamps": [[stamp.path, stamp.size, stamp.mtime_ns] for stamp in self.stamps],
            "sizes": files.sizes(),
        }
        write_json_atomically(files.marker, content, durable=False)


def read_marker(files: StagedFiles) -> Marker | None:
    """Return the marker of a finished partition; None where there is none, or its files are not those it names."""
    try:
        raw = json.loads(files.marker.read_text(encoding="utf-8"))
        source = raw["source"]
        raw["rejections"] = [Rejection(source, *values) for values in raw["rejections"]]
        raw["stamps"] = [FileStamp(*values) for values in raw["stamps"]]
        marker = Marker(**raw)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return marker if marker.sizes == files.sizes() else None
