"""WebDataset tars: neighbouring members with one key (`key.jpg`, `key.txt`, `key.json`) are a row.

A tar is read as a stream and never unpacked to disk. Folders and hidden files in it belong to no row.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from vlmdata.errors import DataError
from vlmdata.locations import is_remote, open_bytes
from vlmdata.sample import Problem, RawRow
from vlmdata.sources.folders import IMAGE_SUFFIXES
from vlmdata.sources.json_rows import parse_object
from vlmdata.sources.rows import IndexedRow

__all__ = ["read_webdataset"]

# Columns that members of these kinds become.
_TEXT_COLUMNS = {"txt": "text", "text": "text", "caption": "caption", "cls": "label"}

# The key and the name of a member, and its content or why there is none.
_Member = tuple[str, str, bytes | Problem]


def read_webdataset(path: Path, max_member_bytes: int) -> Iterator[IndexedRow]:
    """Yield the rows of a tar: what its JSON says, its texts, and its images as `image` or `images`.

    Raises:
        DataError: it is no tar.
    """
    try:
        # closed by the generator that reads it
        tar = tarfile.open(fileobj=open_bytes(path), mode="r|*") if is_remote(path) else tarfile.open(path, "r|*")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable tar file: {error}") from error
    for index, (key, members) in enumerate(groupby(_read_members(tar, max_member_bytes), lambda each: each[0])):
        yield index, _make_row(key, [(name, content) for _, name, content in members])


def _read_members(tar: tarfile.TarFile, max_bytes: int) -> Iterator[_Member]:
    key = ""
    with tar:
        while True:
            try:
                member = tar.next()
                if member is None:
                    return
                # what was read is not needed again, and a tar may have millions of members
                tar.members = []  # type: ignore[attr-defined]  # the list behind getmembers()
                name = PurePosixPath(member.name)
                if member.isdir() or name.name.startswith("."):
                    continue
                key = str(name.with_name(name.name.partition(".")[0]))
                yield key, name.name, _read_content(tar, member, max_bytes)
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                # a key of its own: what came of the last row may not be all of it
                yield f"{key}\0", key, Problem("tar_broken", f"the tar cannot be read on after {key!r:.100}: {error}")
                return


def _read_content(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | Problem:
    if not member.isreg():
        return Problem("tar_not_a_file", f"{member.name!r:.200} is a link or a device")
    if member.size > max_bytes:
        return Problem("line_too_long", f"{member.name!r:.200}: {member.size} bytes, more than {max_bytes}")
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _make_row(key: str, members: list[tuple[str, bytes | Problem]]) -> RawRow | Problem:
    row: RawRow = {}
    texts: RawRow = {}
    images: list[dict[str, Any]] = []
    for name, content in members:
        if isinstance(content, Problem):
            return content
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            images.append({"bytes": content, "path": name})
        elif suffix == ".json":
            parsed = parse_object(content)
            if isinstance(parsed, Problem):
                return parsed
            row.update(parsed)
        elif suffix[1:] in _TEXT_COLUMNS:
            try:
                texts[_TEXT_COLUMNS[suffix[1:]]] = content.decode().strip()
            except UnicodeDecodeError as error:
                return Problem("bad_encoding", f"{name!r:.100} is not UTF-8: {error.reason} at byte {error.start}")
    row = {"id": key, "__key__": key, **texts, **row}
    if len(images) > 1 or (images and "images" in row):
        row.pop("image", None)
        row["images"] = images
    elif images:
        row["image"] = images[0]
    return row
