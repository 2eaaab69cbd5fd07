"""COCO's caption files: one JSON object with `images` and `annotations`, which become one row for each image."""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError, ResourceError
from vlmdata.sample import Problem, RawRow
from vlmdata.sources.json_lists import split_lists
from vlmdata.sources.json_rows import parse_object
from vlmdata.sources.rows import IndexedRow, open_binary

__all__ = ["is_coco", "read_coco"]

_HEAD_BYTES = 1 << 20
# A file whose first line is too long to be looked at whole is told by its first key.
_FIRST_KEY = re.compile(rb'\{\s*"(?:(?:info|licenses)"\s*:|(?:images|annotations|categories)"\s*:\s*\[\s*\{)')


_LISTS = ("images", "annotations")


def is_coco(path: Path) -> bool:
    """Tell whether a JSON file is an object with `images` and `annotations`."""
    with open_binary(path) as file:
        head = file.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    first_line, newline, _ = head.partition(b"\n")
    if not head.startswith(b"{"):
        return False
    if newline or len(head) < _HEAD_BYTES - 4:
        try:
            return _has_lists(json.loads(first_line))
        except (ValueError, RecursionError):
            pass  # the first line is not the whole object
    return _FIRST_KEY.match(head) is not None


def _has_lists(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in _LISTS)


def read_coco(path: Path, max_row_bytes: int) -> Iterator[IndexedRow]:
    """Yield `{id, image, image_id, captions, …}` for each image, then a problem for each caption without an image.

    The two lists refer to each other and come in any order, so they go into a database on disk first, as large as the
    file, in the folder for temporary files; memory does not grow with the file.

    Raises:
        DataError: the file is broken, or its annotations are no captions.
        ResourceError: there is no room for the database.
    """
    with closing(_CaptionIndex()) as index:
        try:
            with open_binary(path) as file:
                for name, element in split_lists(file, _LISTS, max_row_bytes):
                    index.add(name, element)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{path}: not readable: {error}") from error
        except sqlite3.Error as error:
            raise ResourceError(f"{path}: cannot be indexed in the folder for temporary files: {error}") from error
        if index.lists != set(_LISTS):
            raise DataError(f"{path}: holds one JSON object, not an array of rows or one row on each line")
        if index.annotations and not index.captions:
            raise DataError(f"{path}: COCO annotations without captions (boxes, masks or keypoints), no training set")
        yield from enumerate(index.join())


class _CaptionIndex:
    """Images and captions of a file, in a database that goes with the object. Keys are JSON, so that 7 is not "7"."""

    def __init__(self) -> None:
        # without a name SQLite keeps it in a file of its own, which it removes; rows may be read in another thread
        self._base = sqlite3.connect("", check_same_thread=False)
        self._base.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE images (n INTEGER PRIMARY KEY, key TEXT, row TEXT);
            CREATE TABLE captions (n INTEGER PRIMARY KEY, key TEXT, caption TEXT);
            CREATE TABLE problems (n INTEGER PRIMARY KEY, reason TEXT, detail TEXT);
            """
        )
        self.lists: set[str] = set()
        self.annotations = self.captions = 0

    def close(self) -> None:
        """Remove the database."""
        self._base.close()

    def add(self, name: str, element: bytes | Problem | None) -> None:
        """Take in an element of one of the lists; None says that there is such a list."""
        if element is None:
            self.lists.add(name)
            return
        row = element if isinstance(element, Problem) else parse_object(element)
        if name == "images":
            self._add_image(row)
        else:
            self._add_annotation(row)

    def _add_image(self, row: RawRow | Problem) -> None:
        key = _as_key(row, "id")
        if isinstance(row, Problem) or key is None:
            problem = row if isinstance(row, Problem) else Problem("bad_annotation", "an image without an id")
            key, text = None, json.dumps([problem.reason, problem.detail])
        else:
            text = json.dumps(row)
        self._base.execute("INSERT INTO images (key, row) VALUES (?, ?)", (key, text))

    def _add_annotation(self, row: RawRow | Problem) -> None:
        self.annotations += 1
        key = _as_key(row, "image_id")
        if not isinstance(row, Problem) and key is not None and "caption" in row:
            self.captions += 1
            values = key, json.dumps(row["caption"])
            self._base.execute("INSERT INTO captions (key, caption) VALUES (?, ?)", values)
            return
        stray = Problem("bad_annotation", "an annotation without an image_id and a caption")
        problem = row if isinstance(row, Problem) and row.reason != "not_an_object" else stray
        values = problem.reason, problem.detail
        self._base.execute("INSERT INTO problems (reason, detail) VALUES (?, ?)", values)

    def join(self) -> Iterator[RawRow | Problem]:
        """Yield a row for each image, with the captions where it is first listed; then what belongs to none."""
        self._base.executescript(
            """
            CREATE INDEX captions_by_key ON captions (key);
            CREATE TABLE first_images (n INTEGER PRIMARY KEY, key TEXT UNIQUE);
            INSERT INTO first_images SELECT min(n), key FROM images WHERE key IS NOT NULL GROUP BY key;
            """
        )
        images = "SELECT images.key, row, f.n IS NOT NULL FROM images LEFT JOIN first_images f USING (n) ORDER BY n"
        for key, text, is_first in self._base.execute(images):
            if key is None:
                yield Problem(*json.loads(text))
                continue
            wanted = "SELECT caption FROM captions WHERE key = ? ORDER BY n"
            captions = [json.loads(each) for (each,) in self._base.execute(wanted, (key,))] if is_first else []
            row = json.loads(text)
            yield {**row, "image": row.get("file_name"), "image_id": row["id"], "captions": captions}
        lost = "SELECT key FROM captions WHERE key NOT IN (SELECT key FROM first_images) ORDER BY n"
        for (key,) in self._base.execute(lost):
            yield Problem("image_missing", f"a caption of image {json.loads(key)!r}, which the file does not list")
        for reason, detail in self._base.execute("SELECT reason, detail FROM problems ORDER BY n"):
            yield Problem(reason, detail)


def _as_key(row: RawRow | Problem, name: str) -> str | None:
    value = None if isinstance(row, Problem) else row.get(name)
    return json.dumps(value) if isinstance(value, int | str) else None
