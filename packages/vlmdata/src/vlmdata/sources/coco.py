"""COCO's caption files: one JSON object with `images` and `annotations`, which become one row for each image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmdata.sample import Problem
from vlmdata.sources.rows import IndexedRow, open_binary

__all__ = ["is_coco", "read_coco"]

_HEAD_BYTES = 1 << 20
# A file whose first line is too long to be looked at whole is told by its first key.
_FIRST_KEY = re.compile(rb'\{\s*"(?:(?:info|licenses)"\s*:|(?:images|annotations|categories)"\s*:\s*\[\s*\{)')


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
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in ("images", "annotations"))


def read_coco(path: Path) -> Iterator[IndexedRow]:
    """Yield `{id, image, image_id, captions, …}` for each image, then a problem for each caption without an image.

    The two lists refer to each other, so the file is held in memory as a whole (COCO's own 600,000 captions: 0.5 GB).

    Raises:
        DataError: the file is broken, or its annotations are no captions.
    """
    try:
        with open_binary(path) as file:
            whole = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    if not _has_lists(whole):
        raise DataError(f"{path}: holds one JSON object, not an array of rows or one row on each line")
    captions: dict[Any, list[Any]] = {}
    strays: list[Problem] = []
    for annotation in whole["annotations"]:
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if isinstance(key, int | str) and "caption" in annotation:
            captions.setdefault(key, []).append(annotation["caption"])
        else:
            strays.append(Problem("bad_annotation", "an annotation without an image_id and a caption"))
    if whole["annotations"] and not captions:
        raise DataError(f"{path}: COCO annotations without captions (boxes, masks or keypoints), no training set")
    yield from enumerate([*_join(whole["images"], captions), *_name_strays(captions), *strays])


def _join(images: list[Any], captions: dict[Any, list[Any]]) -> Iterator[dict[str, Any] | Problem]:
    """Yield a row for each image, taking its captions out."""
    for image in images:
        key = image.get("id") if isinstance(image, dict) else None
        if isinstance(key, int | str):
            yield {**image, "image": image.get("file_name"), "image_id": key, "captions": captions.pop(key, [])}
        else:
            yield Problem("bad_annotation", "an image without an id")


def _name_strays(captions: dict[Any, list[Any]]) -> Iterator[Problem]:
    for key, texts in captions.items():
        for _ in texts:
            yield Problem("image_missing", f"a caption of image {key!r}, which the file does not list")
