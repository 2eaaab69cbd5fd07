r"""Boxes inside texts: `"bbox_2d": [x1, y1, x2, y2]` in JSON, and box tags, moved with the image they lie on.

    {"bbox_2d": [10, 20, 30, 40], "label": "cat"}                also "bbox", in double or single quotes, and lists of
                                                                 such boxes
    <|box_start|>(10,20),(30,40)<|box_end|>                      Qwen2-VL
    <box>(10,20),(30,40)</box>, <box>[[10, 20, 30, 40]]</box>    Qwen-VL, InternVL

Numbers that stand anywhere else are never touched, nor is what holds no numbers (`"bbox_2d": [x1, y1, x2, y2]` in an
instruction). PaliGemma's `<loc0123>` and keys such as `point_2d` and `box_2d` (whose y comes first) are not known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vlmdata.formats.boxes import Placement, move_boxes
from vlmdata.sample import Objects, Problem, Sample

__all__ = ["BOX_TAG", "check_text_boxes", "has_text_boxes", "move_text_boxes"]

# Qwen's tokens around a box and around what is in it. They part no turns: with a box format, whole tags are what a text
# is meant to say.
BOX_TAG = re.compile(
    r"(<\|(?:box_start\|>[^<>|]{0,1000}<\|box_end|object_ref_start\|>[^<>|]{0,1000}<\|object_ref_end)\|>)"
)

# What stands between the marks: numbers, with brackets, commas and white space. One class of characters, so that a
# search takes no longer than the text is long.
_INNER = r"[-+0-9.eE,;()\[\]\s]"
_BOX = re.compile(
    rf"""(?P<head>(?P<quote>["'])bbox(?:_2d)?(?P=quote)\s{{0,8}}:\s{{0,8}}(?=\[))(?P<list>{_INNER}*+)"""
    rf"|(?P<open><\|box_start\|>|<box>)(?P<tagged>{_INNER}*+)(?P<close><\|box_end\|>|</box>)"
)
_MARK = re.compile(r"""["']bbox(?:_2d)?["']\s{0,8}:\s{0,8}\[|<\|box_start\|>|<box>""")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CLOSES = {"<|box_start|>": "<|box_end|>", "<box>": "</box>"}
# How deep the value of a JSON key may be nested: a box, or a list of boxes.
_MAX_DEPTH = 2
# Of boxes from 0 to 1, however round they were: a tenth of a pixel of a picture of 1000 px.
_DECIMALS = 4


def has_text_boxes(value: Any, depth: int = 8) -> bool:
    """Tell whether a text shows boxes, in any text of a raw value such as a row."""
    if isinstance(value, str):
        return _MARK.search(value) is not None
    if depth == 0 or not isinstance(value, dict | list | tuple):
        return False
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value
    return any(has_text_boxes(each, depth - 1) for each in inner)


def check_text_boxes(text: str) -> Problem | None:
    """Return what is wrong with the boxes of a text: another number of numbers than four a box."""
    found = _rewrite(text, list)
    return found if isinstance(found, Problem) else None


def move_text_boxes(sample: Sample, placements: Sequence[Placement], box_format: str) -> Problem | None:
    """Write the boxes of all texts of a row anew, where they lie on the stored images.

    A box lies on an image shown in its turn or before; where these are several, they must have been changed alike.
    Boxes of which a crop left a part are cut to it.

    Args:
        sample: the row; its messages and accepted answers are changed.
        placements: of its images, in order.
        box_format: as `--box-format` names it.

    Returns:
        What is wrong: a box of which it is not clear where it lies, or that lies on what was cut off.
    """
    shown = 0
    place: Placement | Problem | None = None
    for message in sample.messages:
        shown += sum(part.type == "image" for part in message.content)
        place = _common_place(placements[:shown])
        for part in message.content:
            moved = _move(part.text or "", place, box_format)
            if isinstance(moved, Problem):
                return moved
            part.text = moved if part.text is not None else None
    references = []
    for text in sample.references:
        moved = _move(text, place, box_format)
        if isinstance(moved, Problem):
            return moved
        references.append(moved)
    sample.references = references
    return None


def _common_place(placements: Sequence[Placement]) -> Placement | Problem | None:
    if len(set(placements)) > 1:
        count = len(placements)
        return Problem(
            "bad_boxes", f"a box in a text does not say on which of {count} differently sized images it lies"
        )
    return placements[0] if placements else None


def _move(text: str, place: Placement | Problem | None, box_format: str) -> str | Problem:
    if place is None or _MARK.search(text) is None:
        return text
    if isinstance(place, Problem):
        # a mark without numbers after it, as in an instruction, needs no image
        return place if any(_NUMBER.search(_inner(match)) for match in _BOX.finditer(text)) else text
    if box_format.partition("-")[2] and place.content == (0, 0, *place.stored):
        return text
    if place.original == place.stored and place.content == (0, 0, *place.stored):
        return text

    def move(box: Sequence[float]) -> Sequence[float] | Problem:
        (moved,) = move_boxes(Objects([list(box)], [""], [0], box_format), [place]).bbox
        return _cut(moved, place, box_format)

    return _rewrite(text, move, _DECIMALS if box_format.endswith("-norm") else 0)


def _cut(box: list[float], place: Placement, box_format: str) -> list[float] | Problem:
    """Return what a crop leaves of a box; without one, the box as it is."""
    corners, _, unit = box_format.partition("-")
    left, top, width, height = place.content
    if left >= 0 and top >= 0 and left + width <= place.stored[0] and top + height <= place.stored[1]:
        return box
    new = list(box)
    for axis in range(2):
        full = {"": float(place.stored[axis]), "norm": 1.0, "1000": 1000.0}[unit]
        first, second = box[axis], box[2 + axis]
        begin = {"xyxy": first, "xywh": first, "cxcywh": first - second / 2}[corners]
        end = {"xyxy": second, "xywh": first + second, "cxcywh": first + second / 2}[corners]
        begin, end = max(begin, 0.0), min(end, full)
        if begin >= end:
            return Problem("bad_boxes", "a box in a text lies on what --fit crop cuts off")
        new[axis] = {"xyxy": begin, "xywh": begin, "cxcywh": (begin + end) / 2}[corners]
        new[2 + axis] = {"xyxy": end, "xywh": end - begin, "cxcywh": end - begin}[corners]
    return new


def _inner(match: re.Match[str]) -> str:
    """The numbers of a match, with what stands between them."""
    return _list_of(match["list"]) if match["head"] is not None else match["tagged"]


def _list_of(text: str) -> str:
    """The beginning of a text up to the bracket that closes its first one; nothing where none does."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth > _MAX_DEPTH or character in "();":
            return ""
        if depth == 0:
            return text[: i + 1]
    return ""


def _rewrite(
    text: str, change: Callable[[Sequence[float]], Sequence[float] | Problem], decimals: int = 0
) -> str | Problem:
    """Return a text with each of its boxes changed, in at least so many decimals, and everything else as it is."""
    problems: list[Problem] = []

    def replace(match: re.Match[str]) -> str:
        if match["open"] is not None and match["close"] != _CLOSES[match["open"]]:
            return match[0]
        inner = _inner(match)
        numbers = [float(number[0]) for number in _NUMBER.finditer(inner)]
        if len(numbers) % 4 or not all(map(math.isfinite, numbers)):
            problems.append(Problem("bad_boxes", f"a box in a text is {inner!r:.60}, not four numbers"))
        if problems or not numbers:
            return match[0]
        moved: list[float] = []
        for i in range(0, len(numbers), 4):
            box = change(numbers[i : i + 4])
            if isinstance(box, Problem):
                problems.append(box)
                return match[0]
            moved.extend(box)
        new = iter(moved)
        written = _NUMBER.sub(lambda number: _write(next(new), number[0], decimals), inner)
        if match["head"] is not None:
            return match["head"] + written + match["list"][len(inner) :]
        return match["open"] + written + match["close"]

    rewritten = _BOX.sub(replace, text)
    return problems[0] if problems else rewritten


def _write(value: float, before: str, decimals: int) -> str:
    """A number with as many decimals as the one in whose place it comes, or as are needed."""
    if "e" in before.lower():
        return repr(value)
    return f"{value:.{max(decimals, len(before.partition('.')[2]))}f}"
