"""The folder of an export: what may be replaced, and that it appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmdata.errors import ConfigError, DataError
from vlmtrain.source import EXPORT_FILE, ModelSource
from vlmtrain.whole_folders import as_resource_error, is_write_failure

__all__ = ["check_export_folder", "fresh_folder", "saved_or_full"]


def check_export_folder(source: ModelSource, out: Path, *, overwrite: bool) -> None:
    """Refuses a folder whose content is not an earlier export, or is needed for this one.

    Raises:
        ConfigError: It may not be written to.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder to write")
    if not out.exists() or not any(out.iterdir()):
        return
    place = out.resolve()
    needed = (Path(source.name) if source.is_local else None, source.adapter, source.run)
    if any(path is not None and (path == place or place in path.parents) for path in needed):
        raise ConfigError(f"{out}: holds the model that is to be exported; choose another folder")
    if not overwrite:
        raise ConfigError(f"{out}: is not empty; --overwrite replaces an earlier export")
    known = (EXPORT_FILE, "adapter_config.json", "config.json")
    if not any((out / file).is_file() for file in known):
        raise ConfigError(f"{out}: holds something else than an export; choose another folder")


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place when the block ends without an error.

    An earlier export stays until then. What a refused export wrote stays in the folder beside for inspection, and the
    error says so; what an interrupted one or a full disk left is removed.

    Raises:
        ResourceError: The folder cannot be made or replaced.
    """
    out = out.resolve()  # `.` has no name to write beside
    partial = out.with_name(f".{out.name}.partial")
    with saved_or_full(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
    except DataError as error:
        raise DataError(f"{error}; what was written is left in {partial}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with saved_or_full(out):
        _swap(partial, out)


def _swap(partial: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def saved_or_full(out: Path) -> Iterator[None]:
    """Turns what libraries raise when the disk is full or the folder not writable into one line.

    Raises:
        ResourceError: Writing failed.
    """
    try:
        yield
    except Exception as error:
        if is_write_failure(error):
            raise as_resource_error(error, out) from error
        raise
