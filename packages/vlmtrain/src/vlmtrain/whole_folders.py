"""Writing a folder so that it is there whole or not at all, and saying in one line why it could not be written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from vlmdata.errors import ResourceError, ToolkitError

__all__ = ["STAGING_NAME", "as_resource_error", "is_write_failure", "move_into_place", "whole_folder"]

STAGING_NAME = ".writing"
"""Folder beside the target in which it is written first."""

# How the libraries below say that a write failed: safetensors and torch.save wrap the system's error in their own.
_WRITERS = ("SafetensorError", "PytorchStreamWriter", "inline_container", "iostream error")


def is_write_failure(error: BaseException) -> bool:
    """Whether an exception stands for a file that could not be written."""
    if isinstance(error, ToolkitError):
        return False
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError)
    return any(name in f"{type(error).__name__} {error}" for name in _WRITERS)


def as_resource_error(error: BaseException, path: Path, hint: str = "") -> ResourceError:
    """The one line for a write that failed.

    Args:
        error: What the writer raised.
        path: What was to be written.
        hint: What is left, and what to do.
    """
    words = getattr(error, "strerror", None)
    if not words:
        text = " ".join(str(error).split())
        # torch says no more than that fewer bytes arrived than were sent
        short = "No space left" in text or "unexpected pos" in text
        words = "No space left on device" if short else f"the disk took no more ({text[:100]})"
    return ResourceError(f"{path}: cannot be written: {words}" + (f"; {hint}" if hint else ""))


@contextlib.contextmanager
def whole_folder(target: Path, hint: str = "") -> Iterator[Path]:
    """Gives a folder to write into, which becomes `target` when nothing failed.

    Args:
        target: The folder to write; an earlier one stays until the new one is whole, and is then replaced.
        hint: Goes with the error's line.

    Yields:
        A folder of the same name in `.writing` beside the target.

    Raises:
        ResourceError: Writing failed; what was written is removed, so that the disk has its space back.
    """
    staging = target.parent / STAGING_NAME / target.name
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        move_into_place(staging, target)
    except Exception as error:
        shutil.rmtree(staging.parent, ignore_errors=True)
        if is_write_failure(error):
            raise as_resource_error(error, target, hint) from error
        raise


def move_into_place(staging: Path, target: Path) -> None:
    """Renames a written folder to its final name; one that is in its place goes."""
    if target.exists():
        replaced = staging.with_name(f"{staging.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)  # of a move that was killed before its last line
        target.rename(replaced)
        staging.rename(target)
        shutil.rmtree(replaced)
    else:
        staging.rename(target)
    with contextlib.suppress(OSError):  # another folder is being written beside it
        staging.parent.rmdir()
