"""Whether a file has changed since it was read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vlmdata.locations import is_remote, open_location, stamp_opened, stamp_remote

__all__ = ["FileStamp", "are_unchanged", "stamp_file"]

# Each waits for the answer of a server.
_THREADS = 16
# The first file that has changed ends the questions after so many at most.
_AT_ONCE = 256


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


def are_unchanged(stamps: Sequence[FileStamp]) -> bool:
    """Tell whether files are as they were; remote ones are asked for several at once.

    Raises:
        ResourceError: the network or the credentials for a remote file give out.
    """
    remote = [stamp for stamp in stamps if is_remote(stamp.path)]
    if not all(stamp_file(stamp.path) == stamp for stamp in stamps if not is_remote(stamp.path)):
        return False
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="stamp") as threads:
        for begin in range(0, len(remote), _AT_ONCE):
            some = remote[begin : begin + _AT_ONCE]
            # opened here, because each thread would open a file system of its own
            found = threads.map(stamp_opened, [open_location(stamp.path) for stamp in some])
            if any(each != (stamp.size, stamp.mtime_ns) for each, stamp in zip(found, some, strict=True)):
                return False
    return True
