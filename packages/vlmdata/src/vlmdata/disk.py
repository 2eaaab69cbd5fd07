"""Writing to a disk: files that appear whole or not at all, and what goes wrong there in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmdata.errors import ResourceError
from vlmdata.locations import is_remote_failure, locator

__all__ = ["explain_disk_errors", "whole_file"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a local file beside `path` to write, and rename it to `path` at the end, so that no reader sees half of it.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if str(error.filename) == str(temporary):
            # what was asked for, and not what was to become it
            error.filename = str(path)
        raise


@contextmanager
def explain_disk_errors(place: Path, *, kept: str = "") -> Iterator[None]:
    """Turn errors of the operating system into one clear line.

    Args:
        place: what is written.
        kept: what to add where the disk is full, on what remains of the work.

    Raises:
        ResourceError: the disk is full or cannot be written, or the memory gave out.
    """
    where = locator(place)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{where}: the disk is full{kept}") from error
        raise ResourceError(f"{error.filename or where}: {error.strerror or error}") from error
    except MemoryError as error:
        raise ResourceError("out of memory; fewer --workers need less") from error
    except Exception as error:
        if not is_remote_failure(error):
            raise
        raise ResourceError(f"{where}: {' '.join(str(error).split())}") from error
