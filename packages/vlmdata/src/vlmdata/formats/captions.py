"""Images with captions and no question: COCO's caption files and WebDataset tars, asked for a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vlmdata.config import ColumnConfig
from vlmdata.formats import columns as column_sets
from vlmdata.formats.conversation import Draft
from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import Template
from vlmdata.sample import Problem, RawRow

__all__ = ["INSTRUCTION", "NAME", "convert", "detect", "plan"]

NAME = "captions"

# What the user says, unless an option or a column says it.
INSTRUCTION = "Describe the image."
CAPTION_COLUMNS = ("captions", "caption", "text", "txt")


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows as the readers of COCO files and of tars make them; in other files a question is missed, not made up."""
    return any(
        ({"image_id", "captions"} <= row.keys() or "__key__" in row)
        and ("image" in row or "images" in row)
        and any(name in row for name in CAPTION_COLUMNS)
        and not any(name in row for name in column_sets.INSTRUCTION_COLUMNS)
        for row in rows
    )


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Find image and caption by their usual names; what the user says is constant.

    Raises:
        ConfigError: there is no caption, or an option names no column.
    """
    caption = config.response or next((name for name in CAPTION_COLUMNS if name in columns), None)
    # any column stands in for the question while the others are looked for
    stand_in = columns[0] if columns else None
    reading = column_sets.plan(columns, replace(config, instruction=stand_in, response=caption))
    return replace(reading, format=NAME, instruction=Template(INSTRUCTION, ((INSTRUCTION, None),), is_column=False))


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Make a conversation of the instruction and the caption; further captions are accepted answers."""
    return column_sets.convert(row, reading)
