"""manifest.json: the last file of a build. Where it exists, the folder is whole.

Its form:

    {"schema_version": 1, "fingerprint": "…",
     "counts": {"read": 900, "kept": 890, "rejected": {"image_missing": 1, …}},
     "splits": {"train": {"rows": 810, "shards": [{"file", "rows", "bytes", "sha256"}]}, …},
     "config": {…}, "versions": {…}, "inputs": [{"path", "kind", "format", "rows", "digest"}, …],
     "against": [{"path", "kind", "images", "digest"}, …]}

Paths of shards are relative to the folder, those of inputs to the place that all inputs have in common.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.disk import whole_file
from vlmdata.errors import DataError
from vlmdata.locations import explain_remote_errors, is_remote, kind_of, locator, open_location, stamp_remote
from vlmdata.schema import SCHEMA_VERSION

__all__ = [
    "MANIFEST_NAME",
    "STAGE_NAME",
    "Counts",
    "Manifest",
    "ShardEntry",
    "SplitEntry",
    "find_problems",
    "hash_file",
    "is_built",
    "read_manifest",
    "verify_folder",
    "write_json_atomically",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"
# The folder in an output for what is not finished, and for what the next build wants to know.
STAGE_NAME = ".stage"
_HASH_BLOCK_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True, frozen=True)
class ShardEntry:
    """One shard file; `file` is relative to the folder and written with `/`."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(slots=True, kw_only=True, frozen=True)
class SplitEntry:
    """The shards of one split, in order."""

    rows: int
    shards: tuple[ShardEntry, ...]


@dataclass(slots=True, kw_only=True, frozen=True)
class Counts:
    """How the input rows were accounted for: `read == kept + sum(rejected.values())`."""

    read: int
    kept: int
    rejected: Mapping[str, int] = field(default_factory=dict)

    def is_balanced(self) -> bool:
        """Tell whether every row that was read is either kept or rejected."""
        return self.read == self.kept + sum(self.rejected.values())


@dataclass(slots=True, kw_only=True, frozen=True)
class Manifest:
    """What a built folder holds and what it was built from."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    counts: Counts
    splits: Mapping[str, SplitEntry]
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    against: tuple[Mapping[str, Any], ...] = ()


def write_json_atomically(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as JSON so that a reader sees the old file or the whole new one.

    With `durable` this holds after a power cut too, at the price of waiting for the disk; what is not, is for programs
    alone and written without line breaks, several times as fast.
    """
    if is_remote(path):
        # object stores show a new object when all of it has come, and only then
        path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1 if durable else None) + "\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write manifest.json into `folder`, atomically, and return its path."""
    path = folder / MANIFEST_NAME
    write_json_atomically(path, asdict(manifest))
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of a built folder.

    Raises:
        DataError: there is no manifest (the build did not finish, or this is no built folder), it is not readable, or
            it has another schema version.
    """
    path = open_location(folder) / MANIFEST_NAME
    try:
        with explain_remote_errors(folder) if is_remote(folder) else nullcontext():
            raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        unfinished = "the build did not finish, or this is no built folder"
        hint = unfinished if kind_of(path.parent) == "folder" else "the folder does not exist"
        raise DataError(
            f"{locator(folder)}: no {MANIFEST_NAME} ({hint}); run `vlmdata build … --out {folder}`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable manifest: {error}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {version!r}, this program reads {SCHEMA_VERSION!r}")
    try:
        return _parse_manifest(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest of a built folder: {type(error).__name__} {error}") from error


def is_built(folder: str | Path) -> bool:
    """Tell whether a location is a folder that a build finished.

    Raises:
        ResourceError: the network or the credentials for a remote folder give out.
    """
    return kind_of(open_location(folder) / MANIFEST_NAME) == "file"


def _parse_manifest(raw: dict[str, Any]) -> Manifest:
    splits = {
        name: SplitEntry(rows=entry["rows"], shards=tuple(ShardEntry(**shard) for shard in entry["shards"]))
        for name, entry in raw["splits"].items()
    }
    return Manifest(
        splits=splits,
        counts=Counts(**raw["counts"]),
        fingerprint=raw["fingerprint"],
        config=raw["config"],
        versions=raw["versions"],
        inputs=tuple(raw["inputs"]),
        against=tuple(raw.get("against", ())),
        schema_version=raw["schema_version"],
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def find_problems(folder: Path, manifest: Manifest, *, checksums: bool = False) -> list[str]:
    """List what does not match the manifest: missing shards, sizes, row sums and, on demand, checksums."""
    problems = []
    if not manifest.counts.is_balanced():
        problems.append(f"manifest counts do not add up: {asdict(manifest.counts)}")
    if manifest.counts.kept != sum(split.rows for split in manifest.splits.values()):
        problems.append(f"manifest keeps {manifest.counts.kept} rows, its splits hold another number")
    for name, split in manifest.splits.items():
        if split.rows != sum(shard.rows for shard in split.shards):
            problems.append(f"split {name!r}: {split.rows} rows, its shards hold another number")
        for shard in split.shards:
            path = folder / shard.file
            size = _find_size(path)
            if size is None:
                problems.append(f"{shard.file}: missing")
            elif size != shard.bytes:
                problems.append(f"{shard.file}: {size} bytes, the manifest says {shard.bytes}")
            elif checksums and (digest := hash_file(path)) != shard.sha256:
                problems.append(f"{shard.file}: SHA-256 {digest[:12]}…, the manifest says {shard.sha256[:12]}…")
    return problems


def _find_size(path: Path) -> int | None:
    if is_remote(path):
        size, _ = stamp_remote(path)
        return size if size >= 0 else None
    return path.stat().st_size if path.is_file() else None


def verify_folder(folder: str | Path, *, checksums: bool = False) -> Manifest:
    """Read the manifest and make sure that the shards are the ones it names.

    Sizes are always compared; SHA-256 only with `checksums`, since that reads every byte.

    Raises:
        DataError: no usable manifest, or a shard that does not match; the message names all of them.
    """
    manifest = read_manifest(folder)
    if problems := find_problems(open_location(folder), manifest, checksums=checksums):
        raise DataError(f"{locator(folder)}: " + "; ".join(problems))
    return manifest
