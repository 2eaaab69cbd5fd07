"""The folder that a build writes: what is in it beforehand, one build at a time, and the moment it becomes whole.

While a build works, everything new lies in `OUT/.stage`; an older whole folder stays as it is until the new one is
ready. Then the old manifest goes, the new files move in, and the new manifest comes last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmdata.manifest import MANIFEST_NAME, Manifest, find_problems, read_manifest, write_manifest
from vlmdata.sources.image_bytes import FileStamp, stamp_file

__all__ = [
    "check_output",
    "commit",
    "has_stamps_unchanged",
    "lock_output",
    "staging_folder",
    "touch_manifest",
    "write_stamps",
]

_STAGE = ".stage"
_STAMPS = "inputs.arrow"


def staging_folder(out: Path) -> Path:
    """Return where a build keeps its unfinished work."""
    return out / _STAGE


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Create the folder and keep other builds out of it.

    Raises:
        ResourceError: it cannot be created or written, or another build is at work in it.
    """
    try:
        staging_folder(out).mkdir(parents=True, exist_ok=True)
        lock = (staging_folder(out) / "lock").open("w")
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(f"{out}: another build is writing here") from None
        yield


def check_output(out: Path, content: Mapping[str, Any], *, overwrite: bool) -> Manifest | None:
    """Return the manifest of an earlier build with the same options, None where there is none.

    Args:
        out: the folder.
        content: the options that decide what is in it.
        overwrite: whether an earlier build with other options may be replaced.

    Raises:
        ConfigError: it holds something else, or was built with other options.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, not a folder")
    if not (out / MANIFEST_NAME).exists():
        if out.is_dir() and any(out.iterdir()) and not staging_folder(out).is_dir():
            raise ConfigError(f"{out}: is not empty and was not made by vlmdata build; choose another --out")
        return None
    try:
        manifest = read_manifest(out)
    except DataError as error:
        if overwrite:
            return None
        raise ConfigError(f"{error}; --overwrite replaces the folder") from error
    changed = [name for name in content if manifest.config.get(name) != content[name]]
    if not changed:
        return manifest
    if overwrite:
        return None
    shown = ", ".join(f"{name} {manifest.config.get(name)!r} -> {content[name]!r}" for name in changed[:5])
    raise ConfigError(f"{out}: was built with other options ({shown}); --overwrite replaces it")


def write_stamps(out: Path, stamps: Iterable[FileStamp]) -> None:
    """Note the state of every input file, for the next build to see whether anything changed."""
    each = list(stamps)
    table = pa.table(
        {
            "path": pa.array([stamp.path for stamp in each], pa.string()),
            "size": pa.array([stamp.size for stamp in each], pa.int64()),
            "mtime_ns": pa.array([stamp.mtime_ns for stamp in each], pa.int64()),
        }
    )
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(staging_folder(out) / _STAMPS), table.schema, options=options) as stream:
        stream.write_table(table, max_chunksize=1 << 16)


def has_stamps_unchanged(out: Path, source_files: Sequence[Path]) -> bool:
    """Tell whether the input files are those of the last build, and as they were then."""
    try:
        with pa.ipc.open_stream(pa.memory_map(str(staging_folder(out) / _STAMPS))) as stream:
            table = stream.read_all()
    except (OSError, pa.ArrowInvalid):
        return False
    known = set()
    for row in (row for batch in table.to_batches() for row in batch.to_pylist()):
        if stamp_file(row["path"]) != FileStamp(**row):
            return False
        known.add(row["path"])
    return all(str(path.resolve()) in known for path in source_files)


def touch_manifest(out: Path, manifest: Manifest) -> bool:
    """Make the manifest look new where the folder is whole; tell whether it is."""
    if find_problems(out, manifest):
        return False
    os.utime(out / MANIFEST_NAME)
    return True


def commit(out: Path, ready: Path, manifest: Manifest) -> None:
    """Replace what an earlier build left in the folder by what lies ready, and write the manifest last."""
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    for path in out.iterdir():
        if path.is_dir() and (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
            shutil.rmtree(path)
    for path in sorted(ready.iterdir()):
        os.replace(path, out / path.name)
    ready.rmdir()
    write_manifest(out, manifest)
    for path in staging_folder(out).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (_STAMPS, "lock"):
            path.unlink()
