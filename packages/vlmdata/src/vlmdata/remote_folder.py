"""Local copies of remote built folders: fetched once, checked against the manifest, mapped into memory from there."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from vlmdata.errors import DataError, ResourceError
from vlmdata.locations import cache_folder, copy_from, locator, open_location, remote_files
from vlmdata.manifest import MANIFEST_NAME, Manifest, find_problems, hash_file, read_manifest, write_manifest

__all__ = ["fetch_folder"]


def fetch_folder(url: str | Path) -> Path:
    """Copy a remote built folder to the cache, unless the copy there is of the same build, and return the copy.

    Raises:
        DataError: no manifest, an unknown schema version, or shards that do not match the manifest.
        MissingDependencyError: the file system of the URL is not installed.
        ResourceError: the network, the credentials or the disk give out.
    """
    manifest = read_manifest(url)
    place = hashlib.blake2b(locator(url).encode(), digest_size=8).hexdigest()
    copy = cache_folder() / "folders" / f"{Path(locator(url)).name}-{place}"
    try:
        if not _is_copy(copy, manifest):
            shutil.rmtree(copy, ignore_errors=True)
            _copy_all(open_location(url), copy, manifest)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        words = "the disk is full" if full else error.strerror or str(error)
        raise ResourceError(f"{copy}: {words}; VLMDATA_CACHE names another place for copies") from error
    return copy


def _is_copy(copy: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest(copy) == manifest and not find_problems(copy, manifest)
    except DataError:
        return False


def _copy_all(folder: Path, copy: Path, manifest: Manifest) -> None:
    # the contract's readers load this module, and few of them open a remote folder
    from tqdm import tqdm

    checksums = {shard.file: shard.sha256 for split in manifest.splits.values() for shard in split.shards}
    sizes = remote_files(folder)
    if missing := sorted(checksums.keys() - sizes.keys()):
        raise DataError(f"{locator(folder)}: {missing[0]}: missing")
    wanted = [name for name in sizes if not name.startswith(".") and name != MANIFEST_NAME]
    total = sum(sizes[name] for name in wanted)
    with tqdm(desc="fetching", total=total, unit="B", unit_scale=True, delay=2, disable=None, leave=False) as bar:
        for name in wanted:
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{os.getpid()}.part")
            copy_from(folder / name, part)
            if name in checksums and hash_file(part) != checksums[name]:
                part.unlink()
                raise DataError(f"{locator(folder)}: {name}: its SHA-256 is not the manifest's")
            part.rename(target)
            bar.update(sizes[name])
    write_manifest(copy, manifest)
