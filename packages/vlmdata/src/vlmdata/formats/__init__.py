"""Rows of other tools' formats become samples. A format is a module with `NAME`, `detect`, `plan` and `convert`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmdata.config import ColumnConfig, InputConfig
from vlmdata.errors import ConfigError
from vlmdata.formats import (
    alpaca,
    axolotl,
    captions,
    columns,
    finevision,
    llamafactory,
    llava,
    messages,
    openai,
    sharegpt,
    swift,
    trl,
)
from vlmdata.formats.answers import ANSWER_NUMBER, expand_answers
from vlmdata.formats.boxes import Placement, move_boxes, read_objects
from vlmdata.formats.conversation import Draft
from vlmdata.formats.filters import RowFilter
from vlmdata.formats.pages import spread_pages
from vlmdata.formats.reading import Reading
from vlmdata.formats.refusals import find_preferences, name_other_kind
from vlmdata.formats.templates import as_text, list_columns
from vlmdata.formats.text_boxes import BOX_TAG, check_text_boxes, has_text_boxes, move_text_boxes
from vlmdata.formats.validation import check_messages, check_references, escape_tokens, remove_control
from vlmdata.sample import Message, Objects, Part, Problem, RawRow, Sample
from vlmdata.text_config import TextConfig

__all__ = [
    "FORMATS",
    "Placement",
    "Reading",
    "convert_row",
    "encode_meta",
    "expand_answers",
    "fit_to_images",
    "plan_reading",
    "read_group",
    "read_id",
]

# Asked in this order: what is told by a closer look comes before what it is a kind of; columns fits everything.
_DETECTED = (openai, axolotl, messages, finevision, trl, sharegpt, llava, swift, alpaca, captions, columns)
FORMATS = (*_DETECTED, llamafactory)
_OBJECT_PLACES = ("<ref-object>", "<bbox>")


def plan_reading(
    rows: Sequence[RawRow],
    config: InputConfig,
    column_config: ColumnConfig,
    group_by: str | None,
    *,
    texts: TextConfig | None = None,
    description: Mapping[str, Any] | None = None,
) -> Reading:
    """Tell the format of an input from its first rows, and find its columns.

    Args:
        rows: the first rows.
        config: names the format, unless it is to be told.
        column_config: the columns that options name.
        group_by: the column whose equal values stay in one split.
        texts: what texts must be, and which answers count.
        description: the entry about this input in a `dataset_info.json`.

    Raises:
        ConfigError: an option names a column that is not there, or does not go with the format; all are named.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    problems: list[str] = []
    reading: Reading | None = None
    try:
        reading = _plan(rows, names, config, column_config, description)
    except ConfigError as error:
        problems.extend(error.problems)
    where = None
    try:
        where = RowFilter(config.where) if config.where else None
        if where is not None:
            where.require_columns(names)
    except ConfigError as error:
        problems.extend(error.problems)
    for option, column in (
        ("id", column_config.id),
        ("group-by", group_by),
        *(("keep", c) for c in column_config.keep),
    ):
        if column is not None and column not in names:
            problems.append(f"{option} {column!r}: no such column; {list_columns(names)}")
    if problems or reading is None:
        raise ConfigError(problems)
    return replace(
        reading,
        id=column_config.id or ("id" if "id" in names else None),
        keep=column_config.keep,
        group_by=group_by,
        where=where,
        escape_tokens=column_config.template_tokens == "escape",
        texts=texts or TextConfig(),
        has_objects="objects" in names,
        has_text_boxes=any(has_text_boxes(row) for row in rows),
    )


def _plan(
    rows: Sequence[RawRow],
    names: Sequence[str],
    config: InputConfig,
    column_config: ColumnConfig,
    description: Mapping[str, Any] | None,
) -> Reading:
    wants_columns = column_config.instruction is not None or column_config.response is not None
    if wants_columns and config.format not in ("auto", columns.NAME):
        raise ConfigError(f"--instruction and --response are for column sets, not for --format {config.format}")
    if config.format == llamafactory.NAME and description is None:
        raise ConfigError("no dataset_info.json beside the file has an entry for it")
    if wants_columns:
        return _plan_columns(rows, names, config, column_config, description)
    if description is not None and config.format in ("auto", llamafactory.NAME):
        return llamafactory.plan_described(names, column_config, description)
    if config.format == "auto" and (refusal := find_preferences(names)):
        raise ConfigError(refusal)
    module: Any = _tell(rows) if config.format == "auto" else next(m for m in _DETECTED if m.NAME == config.format)
    try:
        reading: Reading = module.plan(names, column_config)
    except ConfigError as error:
        if module is columns and (kind := name_other_kind(names)):
            raise ConfigError([f"looks like {kind}", *error.problems]) from None
        raise
    return reading


def _tell(rows: Sequence[RawRow]) -> Any:
    return next(module for module in _DETECTED if module.detect(rows))


def _plan_columns(
    rows: Sequence[RawRow],
    names: Sequence[str],
    config: InputConfig,
    column_config: ColumnConfig,
    description: Mapping[str, Any] | None,
) -> Reading:
    """Use the columns that options name; an input that lacks them may be of a format that has no need of them."""
    try:
        return columns.plan(names, column_config)
    except ConfigError as error:
        module = _tell(rows)
        if config.format != "auto" or (module is columns and description is None):
            raise
        own = replace(column_config, image=(), instruction=None, response=None)
        reading: Reading = (
            module.plan(names, own) if description is None else llamafactory.plan_described(names, own, description)
        )
        return replace(reading, unused_options=error.problems)


def convert_row(row: RawRow, index: int, source: str, reading: Reading) -> Sample | Problem:
    """Turn a raw row into a checked sample, or say why there is none."""
    module = next(module for module in FORMATS if module.NAME == reading.format)
    draft: Draft | Problem = module.convert(row, reading)
    if isinstance(draft, Problem):
        return draft
    if reading.system is not None and draft.messages[0].role != "system":
        system = reading.system.render(row)
        if isinstance(system, str):
            draft.messages.insert(0, Message("system", [Part("text", system)]))
        elif not reading.system.is_column:
            return system
    if reading.texts.control_characters == "strip":
        _rewrite(draft, remove_control)
    boxed = reading.texts.box_format is not None
    if reading.escape_tokens:
        _rewrite(draft, (lambda text: _around_boxes(text, escape_tokens)) if boxed else escape_tokens)
    if problem := check_messages(draft.messages, reading.texts) or check_references(draft.references):
        return problem
    if row.get("objects") and (problem := _find_object_places(draft)):
        return problem
    objects: Objects | Problem | None = None
    if reading.texts.box_format is not None:
        objects = read_objects(row.get("objects"), reading.texts.box_format, len(draft.images))
        if problem := _check_boxes(draft):
            return problem
    if isinstance(objects, Problem):
        return objects
    last = "".join(part.text or "" for part in draft.messages[-1].content)
    return Sample(
        id=read_id(row, index, source, reading),
        source=source,
        row=index,
        messages=draft.messages,
        images=draft.images,
        references=draft.references or [last],
        objects=objects,
        meta={name: row.get(name) for name in reading.keep},
    )


def fit_to_images(sample: Sample, placements: Sequence[Sequence[Placement]], box_format: str | None) -> Problem | None:
    """Make a row's messages and boxes agree with its images as they are stored.

    Args:
        sample: the row, changed in place.
        placements: for each of its images where it lies within its stored picture; several where a file has several
            pages, which the row then shows all.
        box_format: as `--box-format` names it; None leaves texts alone.

    Returns:
        Why the row cannot be used: a box of which it is not clear where it lies.
    """
    if problem := spread_pages(sample, [len(pages) for pages in placements]):
        return problem
    stored = [page for pages in placements for page in pages]
    if sample.objects is not None:
        sample.objects = move_boxes(sample.objects, stored)
    return move_text_boxes(sample, stored, box_format) if box_format is not None else None


def _find_object_places(draft: Draft) -> Problem | None:
    """Return the places where ms-swift writes objects into texts, each family's own way: as text they mean nothing."""
    texts = (part.text or "" for message in draft.messages for part in message.content)
    mark = next((mark for text in texts for mark in _OBJECT_PLACES if mark in text), None)
    detail = f"{mark} is a place where ms-swift writes an object of the row; write the objects into the text beforehand"
    return None if mark is None else Problem("unsupported_part", detail)


def _check_boxes(draft: Draft) -> Problem | None:
    texts = [part.text for message in draft.messages for part in message.content if part.text is not None]
    return next((problem for text in (*texts, *draft.references) if (problem := check_text_boxes(text))), None)


def _around_boxes(text: str, change: Callable[[str], str]) -> str:
    """Change what stands between the box tags of a text, and not the tags."""
    # a pattern with one group: texts and, between them, the tags
    return "".join(piece if i % 2 else change(piece) for i, piece in enumerate(BOX_TAG.split(text)))


def _rewrite(draft: Draft, change: Callable[[str], str]) -> None:
    for message in draft.messages:
        for part in message.content:
            if part.text is not None:
                part.text = change(part.text)
    draft.references = [change(text) for text in draft.references]


def read_id(row: RawRow, index: int, source: str, reading: Reading) -> str:
    """Return the id of a row, in words that can be written down; of one without, its place: `FILE:ROW`."""
    value = as_text(row.get(reading.id), reading.id) if reading.id is not None else None
    # the answers of one row, under --answers all, are told apart
    answer = f"#{row[ANSWER_NUMBER]}" if ANSWER_NUMBER in row else ""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() + answer
    return f"{source}:{index}{answer}"


def read_group(row: RawRow, reading: Reading) -> str | None:
    """Return the value of the `--group-by` column as text; rows without one are in no group."""
    if reading.group_by is None:
        return None
    value = row.get(reading.group_by)
    return None if value is None or value == "" else _plain_json(value)


def encode_meta(sample: Sample) -> str:
    """Return the kept columns as the JSON of the `meta` column; what JSON does not know is written as text."""
    return _plain_json(sample.meta)


def _plain_json(value: Any) -> str:
    return json.dumps(_without_nan(value), ensure_ascii=False, default=str).encode("utf-8", "replace").decode()


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return value
