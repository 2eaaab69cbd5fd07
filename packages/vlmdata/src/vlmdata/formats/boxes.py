"""Boxes of a row's `objects`: read in the format that an option names, and moved with their images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.sample import Objects, Problem

__all__ = ["Placement", "move_boxes", "read_objects"]

_BOX_NAMES = ("bbox", "bboxes", "boxes", "box", "bbox_2d")
_LABEL_NAMES = ("label", "labels", "category", "categories", "ref", "name", "names")
_INDEX_NAMES = ("image_index", "image_id")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an original picture lies within its stored image.

    Attributes:
        original: (width, height) in px of the picture.
        stored: (width, height) in px of the stored image.
        content: (left, top, width, height) in px of the whole picture within the stored image.
    """

    original: tuple[int, int]
    stored: tuple[int, int]
    content: tuple[int, int, int, int]


def read_objects(value: Any, box_format: str, image_count: int) -> Objects | Problem | None:
    """Read `{bbox: […], label: […]}` or `[{bbox, label}, …]`; none where there are no boxes.

    Args:
        value: of the column `objects`.
        box_format: as `--box-format` names it.
        image_count: how many images the row has; with several, each box must say which one it lies on.
    """
    if value is None:
        return None
    entries = _as_entries(value)
    if isinstance(entries, Problem) or not entries:
        return entries if isinstance(entries, Problem) else None
    objects = Objects([], [], [], box_format)
    for box, label, index in entries:
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
            return Problem("bad_boxes", f"a box is {box!r:.60}, not four numbers")
        if label is not None and not isinstance(label, str | int):
            return Problem("bad_boxes", f"the label of a box is a {type(label).__name__}, not text")
        if index is None and image_count > 1:
            return Problem("bad_boxes", f"a box does not say on which of {image_count} images it lies (image_index)")
        index = 0 if index is None else index
        if not isinstance(index, int) or not 0 <= index < image_count:
            return Problem("bad_boxes", f"a box lies on image {index!r:.20} of {image_count}")
        objects.bbox.append([float(number) for number in box])
        objects.label.append("" if label is None else str(label).encode("utf-8", "replace").decode())
        objects.image_index.append(int(index))
    return objects


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _as_entries(value: Any) -> list[tuple[Any, Any, Any]] | Problem:
    """Return box, label and image index of each object, whichever way round the columns and rows are."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return [(_pick(e, _BOX_NAMES), _pick(e, _LABEL_NAMES), _pick(e, _INDEX_NAMES)) for e in value]
    if not isinstance(value, dict):
        return Problem("bad_boxes", f"'objects' is a {type(value).__name__}, neither columns nor a list of objects")
    boxes = _pick(value, _BOX_NAMES)
    if boxes is None:
        return []
    columns = [boxes]
    for names in (_LABEL_NAMES, _INDEX_NAMES):
        column = _pick(value, names)
        columns.append([None] * len(boxes) if column is None and isinstance(boxes, list) else column)
    if not all(isinstance(column, list) and len(column) == len(boxes) for column in columns):
        return Problem("bad_boxes", "'objects' does not have as many labels or images as boxes")
    return list(zip(*columns, strict=True))


def _pick(entry: dict[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def move_boxes(objects: Objects, placements: Sequence[Placement]) -> Objects:
    """Return the boxes where they lie on the stored images; those on cut edges reach outside.

    Args:
        objects: boxes on the original images, as a viewer shows them (after EXIF orientation).
        placements: of the row's images, in order.
    """
    moved = Objects([], objects.label, objects.image_index, objects.format)
    corners, _, unit = objects.format.partition("-")
    for box, index in zip(objects.bbox, objects.image_index, strict=True):
        place = placements[index]
        new = list(box)
        for axis in range(2):
            full = {"": place.original[axis], "norm": 1, "1000": 1000}[unit]
            full_stored = place.stored[axis] if unit == "" else full
            scale = place.content[2 + axis] / full / place.stored[axis] * full_stored
            offset = place.content[axis] / place.stored[axis] * full_stored
            new[axis] = box[axis] * scale + offset
            new[2 + axis] = box[2 + axis] * scale + (offset if corners == "xyxy" else 0.0)
        moved.bbox.append(new)
    return moved
