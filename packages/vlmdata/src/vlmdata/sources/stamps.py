"""Whether a file has changed since it was read."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vlmdata.locations import is_remote, stamp_remote

__all__ = ["FileStamp", "stamp_file"]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells whether a file has changed since: its size in bytes (-1: not there) and its time of change.

    Of a remote file, `mtime_ns` is a hash of what its file system calls its version (an ETag, for one).
    """

    path: str
    size: int
    mtime_ns: int


def stamp_file(path: str) -> FileStamp:
    """Return the stamp of a file as it is now.

    Raises:
        ResourceError: the network or the credentials for a remote file give out.
    """
    if is_remote(path):
        return FileStamp(path, *stamp_remote(path))
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return FileStamp(path, -1, 0)
    return FileStamp(path, status.st_size, status.st_mtime_ns)
