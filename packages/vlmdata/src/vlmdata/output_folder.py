"""The folder that a build writes: what is in it beforehand, one build at a time, and the moment it becomes whole.

While a build works, everything new lies in `OUT/.stage`; an older whole folder stays as it is until the new one is
ready. Then the old manifest goes, the new files move in, and the new manifest comes last. The staged partitions stay
for the next build (unless told otherwise), and may be deleted at any time.

Where OUT is a URL, the unfinished work lies in a local scratch folder of its own, and only what is ready is uploaded;
`OUT/.stage` holds no more than the state of the inputs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmdata.locations import (
    cache_folder,
    copy_file,
    is_remote,
    kind_of,
    locator,
    remote_files,
    remove_files,
)
from vlmdata.manifest import (
    MANIFEST_NAME,
    STAGE_NAME,
    Manifest,
    find_problems,
    read_manifest,
    write_json_atomically,
    write_manifest,
)
from vlmdata.sources.stamps import FileStamp, are_unchanged

__all__ = [
    "check_output",
    "clear_work",
    "commit",
    "has_stamps_unchanged",
    "lock_output",
    "staging_folder",
    "touch_manifest",
    "work_folder",
    "write_stamps",
]

_STAMPS = "inputs.arrow"
_STARTED = "started.json"


def staging_folder(out: Path) -> Path:
    """Return where a build keeps its unfinished work."""
    return out / STAGE_NAME


def work_folder(out: Path, scratch: Path | None = None) -> Path:
    """Return the local folder where the unfinished work of a build is.

    Args:
        out: the folder to build.
        scratch: where a remote one's work goes, in a folder named after its URL; by default the user's cache.
    """
    if not is_remote(out):
        return staging_folder(out)
    name = hashlib.blake2b(locator(out).encode(), digest_size=8).hexdigest()
    return (scratch or cache_folder() / "builds") / f"{out.name}-{name}"


@contextmanager
def lock_output(out: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Create the folder, keep other builds of this machine out of it, and give the folder for unfinished work.

    Raises:
        ResourceError: it cannot be created or written, or another build is at work in it.
    """
    work = work_folder(out, scratch)
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise ResourceError(f"{work if is_remote(out) else out}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(f"{locator(out)}: another build is writing here") from None
        if is_remote(out):
            # what cannot be written shows now, and not after hours of work
            write_json_atomically(staging_folder(out) / _STARTED, {"work": f"{socket.gethostname()}:{work}"})
        yield work


def check_output(out: Path, content: Mapping[str, Any], *, overwrite: bool) -> Manifest | None:
    """Return the manifest of an earlier build with the same options, None where there is none.

    Args:
        out: the folder.
        content: the options that decide what is in it.
        overwrite: whether an earlier build with other options may be replaced.

    Raises:
        ConfigError: it holds something else, or was built with other options.
    """
    if (kind := kind_of(out)) == "file":
        raise ConfigError(f"{locator(out)}: is a file, not a folder")
    if kind_of(out / MANIFEST_NAME) is None:
        if kind == "folder" and any(out.iterdir()) and kind_of(staging_folder(out)) != "folder":
            raise ConfigError(f"{locator(out)}: is not empty and was not made by vlmdata build; choose another --out")
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
    raise ConfigError(f"{locator(out)}: was built with other options ({shown}); --overwrite replaces it")


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
    with (
        (staging_folder(out) / _STAMPS).open("wb") as file,
        pa.ipc.new_stream(file, table.schema, options=options) as stream,
    ):
        stream.write_table(table, max_chunksize=1 << 16)


def has_stamps_unchanged(out: Path, source_files: Sequence[Path]) -> bool:
    """Tell whether the input files are those of the last build, and as they were then."""
    try:
        with (staging_folder(out) / _STAMPS).open("rb") as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
    except (OSError, pa.ArrowInvalid):
        return False
    known: set[str] = set()
    for batch in table.to_batches():
        stamps = [FileStamp(**row) for row in batch.to_pylist()]
        if not are_unchanged(stamps):
            return False
        known.update(stamp.path for stamp in stamps)
    return all(str(path.resolve()) in known for path in source_files)


def touch_manifest(out: Path, manifest: Manifest) -> bool:
    """Make the manifest look new where the folder is whole; tell whether it is."""
    if find_problems(out, manifest):
        return False
    if is_remote(out):
        write_manifest(out, manifest)
    else:
        os.utime(out / MANIFEST_NAME)
    return True


def commit(out: Path, ready: Path, manifest: Manifest) -> None:
    """Replace what an earlier build left in the folder by what lies ready, and write the manifest last."""
    if is_remote(out):
        _upload(out, ready)
    else:
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        for path in out.iterdir():
            if path.is_dir() and (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
                shutil.rmtree(path)
        for path in sorted(ready.iterdir()):
            os.replace(path, out / path.name)
        ready.rmdir()
    write_manifest(out, manifest)
    if is_remote(out):
        staged = (f"{STAGE_NAME}/{name}" for name in (_STAMPS, _STARTED))
        old = {name for name in remote_files(out) if name.startswith(f"{STAGE_NAME}/")}
        remove_files(out, sorted(old.difference(staged)))


def _upload(out: Path, ready: Path) -> None:
    """Copy what lies ready to a remote folder once the old manifest is gone, and remove what is left of old splits."""
    old = remote_files(out)
    remove_files(out, [name for name in (MANIFEST_NAME,) if name in old])
    new = sorted(path for path in ready.rglob("*") if path.is_file())
    for path in tqdm(new, "uploading", unit=" files", delay=2, disable=None, leave=False):
        copy_file(path, out / path.relative_to(ready).as_posix())
    splits = {name.removesuffix("/state.json") for name in old if name.count("/") == 1 and name.endswith("/state.json")}
    kept = {path.relative_to(ready).as_posix() for path in new}
    remove_files(out, [name for name in old if name.partition("/")[0] in splits and name not in kept])


def clear_work(work: Path, kept: Collection[str] = ()) -> int:
    """Remove what a finished build does not need any more; return the bytes of the files that are kept.

    Args:
        work: the folder for unfinished work.
        kept: names in it to leave for the next build.
    """
    size_bytes = 0
    for path in work.iterdir():
        if path.name in kept or path.name in (_STAMPS, "lock"):
            size_bytes += sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")))
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return size_bytes
