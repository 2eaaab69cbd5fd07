"""Where files lie: local paths, and URLs of the file systems that fsspec speaks (`s3://`, `gs://`, `hf://`, …).

`open_location` gives a `Path` for the one and universal-pathlib's `UPath` for the other. That has the methods of a path
that this program uses, and is typed as one; what only one of the two can do is asked for by the functions below.
Neither fsspec nor any of its file systems is imported before a URL is met.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from vlmdata.errors import ConfigError, DataError, MissingDependencyError, ResourceError

__all__ = [
    "cache_folder",
    "copy_file",
    "copy_from",
    "explain_remote_errors",
    "is_remote",
    "is_remote_failure",
    "kind_of",
    "locator",
    "open_bytes",
    "open_location",
    "relative_name",
    "remote_files",
    "remove_files",
    "stamp_opened",
    "stamp_remote",
    "version_of",
]

# `Path` swallows a slash of `s3://bucket`; no local path of one letter and a colon is meant here.
_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}(?=[^/]|$)")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
_READ_BYTES = 1 << 20
# Libraries whose exceptions mean that a remote file system gave out; none of them is imported for that.
_REMOTE_LIBRARIES = frozenset(
    (
        "botocore",
        "aiobotocore",
        "boto3",
        "gcsfs",
        "google",
        "aiohttp",
        "huggingface_hub",
        "httpx",
        "requests",
        "urllib3",
    )
)


def is_remote(location: str | Path) -> bool:
    """Tell whether a location is a URL; `file://` is not, nor is a local path that happens to look like one."""
    text = str(location)
    match = _URL.match(text)
    if match is None or match["scheme"].lower() in ("file", "local"):
        return False
    return "://" in text or not os.path.lexists(text.partition("/")[0])


def locator(location: str | Path) -> str:
    """Return a location as text: a URL with both of its slashes and none at the end, or a path as it was given."""
    text = str(location)
    if not is_remote(text):
        return re.sub(r"^(file|local):/{1,2}(?=/|$)", "", text)
    return _URL.sub(lambda match: f"{match['scheme'].lower()}://", text, count=1).rstrip("/")


def open_location(location: str | Path) -> Path:
    """Return a `Path`, or for a URL a `UPath` that is used like one.

    Raises:
        ConfigError: a chain of URLs, or a scheme that fsspec does not know.
        MissingDependencyError: the file system of the URL needs an extra that is not installed.
    """
    if "::" in str(location) and "://" in str(location):
        raise ConfigError(f"{location}: chained URLs are not read")
    if not is_remote(location):
        return Path(locator(location))
    url = locator(location)
    scheme = url.partition("://")[0]
    extra = _EXTRAS.get(scheme)
    wanted = f"pip install 'vlmdata[{extra}]'" if extra else f"pip install universal-pathlib and fsspec's {scheme}"
    try:
        from upath import UPath

        with explain_remote_errors(url):
            path = UPath(url)
            # what an earlier look at the same place saw may have changed
            path.fs.invalidate_cache()
    except ImportError:
        raise MissingDependencyError(f"{url}: its file system is not installed: {wanted}") from None
    except ValueError as error:
        raise ConfigError(f"{url}: {' '.join(str(error).split())}") from None
    return cast(Path, path)


def kind_of(path: Path) -> str | None:
    """Return `file`, `folder`, or None where there is nothing; unlike `UPath.exists`, say why it cannot be known.

    Raises:
        ResourceError: the network or the credentials give out.
    """
    if not is_remote(path):
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    system, key = _system(path)
    with explain_remote_errors(path):
        try:
            return "folder" if system.info(key)["type"] == "directory" else "file"
        except (FileNotFoundError, NotADirectoryError):
            return None


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading bytes, with a limit for `readline`, which the files of fsspec do not know."""
    if not is_remote(path):
        return path.open("rb")
    with explain_remote_errors(path):
        return io.BufferedReader(cast(io.RawIOBase, path.open("rb")), _READ_BYTES)


def relative_name(path: Path, folder: Path) -> str:
    """Return the name of a file relative to a folder that it lies in, with `/`."""
    return PurePosixPath(locator(path)).relative_to(PurePosixPath(locator(folder))).as_posix()


def remote_files(folder: Path) -> dict[str, int]:
    """Return the files of a remote folder at any depth, by their names in it, with their sizes in bytes."""
    system, key = _system(folder)
    with explain_remote_errors(folder):
        system.invalidate_cache()
        found = system.find(key, detail=True)
    start = len(key.rstrip("/")) + 1
    return {name[start:]: int(info["size"] or 0) for name, info in sorted(found.items())}


def stamp_remote(location: str | Path) -> tuple[int, int]:
    """Return the size of a remote file (-1: not there) and a number that changes with its content.

    For a folder it changes with the names and sizes of what lies in it.

    Raises:
        ResourceError: the network or the credentials give out.
    """
    return stamp_opened(open_location(location))


def stamp_opened(path: Path) -> tuple[int, int]:
    """The same as `stamp_remote` for a path from `open_location`; several threads may share its file system."""
    system, key = _system(path)
    with explain_remote_errors(path):
        try:
            info = system.info(key)
        except (FileNotFoundError, NotADirectoryError):
            return -1, 0
    if info["type"] == "directory":
        return 0, _hash_text(repr(remote_files(path)))
    return int(info["size"] or 0), version_of(info)


def version_of(info: dict[str, Any]) -> int:
    """Return a number that changes with the content of a file, from what its file system says of it."""
    for name in ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime", "created"):
        if info.get(name):
            return _hash_text(str(info[name]))
    return 0


def copy_file(source: Path, target: Path) -> None:
    """Copy a local file to another place, or to a remote one, where a reader sees nothing or the whole file."""
    if not is_remote(target):
        shutil.copyfile(source, target)
        return
    system, key = _system(target)
    with explain_remote_errors(target):
        system.put_file(str(source), key)


def copy_from(source: Path, target: Path) -> None:
    """Copy a remote file to a local place."""
    system, key = _system(source)
    with explain_remote_errors(source):
        system.get_file(key, str(target))


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a remote folder by their names in it."""
    system, key = _system(folder)
    keys = [f"{key.rstrip('/')}/{name}" for name in names]
    with explain_remote_errors(folder):
        if keys:
            system.rm(keys)


def is_remote_failure(error: Exception) -> bool:
    """Tell whether an exception comes from a library of a remote file system."""
    return type(error).__module__.partition(".")[0] in _REMOTE_LIBRARIES


@contextmanager
def explain_remote_errors(place: str | Path) -> Iterator[None]:
    """Turn what a remote file system raises into one line.

    Raises:
        ResourceError: the network or the credentials gave out, or the place cannot be read or written.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ImportError, ResourceError, ConfigError, DataError):
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_remote_failure(error):
            words = " ".join(str(error).split())[:300] or type(error).__name__
            raise ResourceError(f"{locator(place)}: {words}") from error
        raise


def cache_folder() -> Path:
    """Return where copies of remote folders and the unfinished work of builds into them are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("VLMDATA_CACHE") or os.path.join(base, "vlmdata"))


def _hash_text(text: str) -> int:
    """A number of 63 bits, which fits an int64 column."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _system(path: Path) -> tuple[Any, str]:
    """The fsspec file system of a remote path, and the path as that knows it."""
    remote = cast(Any, path)
    return remote.fs, remote.path
