"""The pictures of raw rows of any format, whatever else the rows hold or lack: test questions often have no answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from vlmdata.formats.columns import IMAGE_COLUMNS
from vlmdata.formats.templates import Template, parse_template
from vlmdata.sample import Problem, RawRow
from vlmdata.sources import IndexedRow, Source
from vlmdata.sources.folders import IMAGE_SUFFIXES

__all__ = ["PICTURE", "TEXT", "find_pictures", "parse_templates", "read_pictures"]

# Columns of the rows that `read_pictures` makes, one for each picture, beside `id`.
PICTURE, TEXT = "image", "text"

_HEAD_ROWS = 64
# Keys of content parts, and of an image as datasets stores it.
_PART_KEYS = frozenset(("url", "path", "image", "image_url", "base64"))
_TELLING_WORDS = ("image", "img", "photo", "picture")
_IMAGE_TAG = re.compile(r"<img>(.+?)</img>", re.DOTALL)
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_NAME_CHARS = 200

Picture: TypeAlias = "str | bytes | dict[str, Any]"


def read_pictures(source: Source, templates: Sequence[Template]) -> Iterator[IndexedRow]:
    """Yield a row for each picture of a source, numbered over the source, and each row that could not be read.

    Args:
        source: of rows of any format.
        templates: where pictures are, by `parse_templates`; none where they are looked for in the usual places.

    Yields:
        `{id, image, text}`: the source's name, the index of the row and, where it has one, the picture's own name; the
        picture; and some text.
    """
    number = 0
    for index, row in source.read():
        if isinstance(row, Problem):
            yield number, row
            number += 1
            continue
        for picture in [template.value(row) for template in templates] if templates else find_pictures(row):
            if isinstance(picture, Problem):
                yield number, Problem("image_missing", picture.detail)
            else:
                yield number, {"id": _name(source.name, index, picture), PICTURE: picture, TEXT: "a picture"}
            number += 1


def find_pictures(row: RawRow) -> list[Picture]:
    """Return what a row seems to show: the values of image columns and parts, `<img>` tags, else what ends like a file.

    Of several usual columns (`image`, `file_name`, …) the first with a value counts: the others name the same picture.
    """
    column = next((name for name in IMAGE_COLUMNS if row.get(name)), None)
    found = [
        picture
        for key, value in row.items()
        if key == column or key not in IMAGE_COLUMNS
        for picture in _walk(value, key, is_image=key == column)
    ]
    if not found:
        found = [value for value in row.values() if isinstance(value, str) and _looks_like_file(value)]
    return found


def parse_templates(source: Source, image: Sequence[str]) -> list[Template]:
    """Return what a build's columns or templates of images are in the first rows of a source.

    Raises:
        ConfigError: they are of a set of another form.
    """
    columns: dict[str, None] = {}
    for _, row in islice(source.read(), _HEAD_ROWS if image else 0):
        columns.update(dict.fromkeys(row if not isinstance(row, Problem) else ()))
    return [parse_template("image", text, list(columns), allow_constant=False) for text in image]


def _name(source: str, index: int, picture: Picture) -> str:
    location = picture.get("path") if isinstance(picture, dict) else picture
    if not isinstance(location, str) or location.startswith("data:") or len(location) > _NAME_CHARS:
        return f"{source}:{index}"
    return f"{source}:{index} ({location})"


def _walk(value: Any, key: str, *, is_image: bool) -> Iterator[Picture]:
    """Yield the pictures of a value.

    Args:
        value: anything that JSON or Arrow can hold.
        key: that it stands under.
        is_image: whether a plain text here is an image's place, whatever it looks like.
    """
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            yield value
            return
        is_part = is_image or "type" in value
        for inner, below in value.items():
            yield from _walk(below, str(inner), is_image=is_part and inner in _PART_KEYS)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item, key, is_image=is_image)
    elif isinstance(value, bytes):
        if is_image or value.startswith(_IMAGE_STARTS):
            yield value
    elif isinstance(value, str) and value.strip():
        if value.startswith("data:image"):
            yield value
        elif is_image:
            yield "data:image;base64," + value if key == "base64" else value
        elif _looks_like_file(value) and any(word in key.lower() for word in _TELLING_WORDS):
            yield value
        else:
            yield from _IMAGE_TAG.findall(value)


def _looks_like_file(text: str) -> bool:
    return len(text) <= _NAME_CHARS and text.lower().endswith(tuple(IMAGE_SUFFIXES))
