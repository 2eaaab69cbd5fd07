"""Column sets: an image, what is asked, and the answer, each in a column of its own or made by a template."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.config import ColumnConfig
from vlmdata.errors import ConfigError
from vlmdata.formats.answers import ask_with_choices, read_answers
from vlmdata.formats.conversation import Draft, as_image_refs, find_images
from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import Template, list_columns, parse_template
from vlmdata.sample import ImageRef, Message, Part, Problem, RawRow

__all__ = ["IMAGE_COLUMNS", "INSTRUCTION_COLUMNS", "NAME", "convert", "detect", "plan"]

NAME = "columns"

IMAGE_COLUMNS = ("image", "images", "image_path", "image_file", "file_name", "filename", "img", "image_url")
INSTRUCTION_COLUMNS = ("instruction", "question", "prompt", "query")
RESPONSE_COLUMNS = (
    "response",
    "answer",
    "answers",
    "multiple_choice_answer",
    "output",
    "completion",
    "text",
    "caption",
    "captions",
)
CHOICE_COLUMNS = ("choices", "options")


def detect(rows: Sequence[RawRow]) -> bool:
    """Every row with plain columns can be one; this is what is left when no other format fits."""
    return True


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Find the columns by their usual names, or by what the options say.

    Raises:
        ConfigError: what is asked, or the answer, is nowhere to be found, or an option names no column.
    """
    problems: list[str] = []

    def one(option: str, given: str | None, usual: Sequence[str], *, constant: bool, needed: bool) -> Template | None:
        text = given if given is not None else next((name for name in usual if name in columns), None)
        if text is None:
            if needed:
                choices = "a column, a constant text with a space" if constant else "a column"
                hint = f"give --{option} {choices} or a template with {{column}}"
                problems.append(f"no column for the {option}: {hint}; {list_columns(columns)}")
            return None
        try:
            return parse_template(option, text, columns, allow_constant=constant)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    images = [one("image", text, (), constant=False, needed=True) for text in config.image]
    if not config.image:
        images = [one("image", None, IMAGE_COLUMNS, constant=False, needed=False)]
    choices = next((name for name in CHOICE_COLUMNS if name in columns), None)
    reading = Reading(
        format=NAME,
        # the column may come first in a row that was not looked at
        other_images=() if config.image else IMAGE_COLUMNS,
        choices=choices if config.instruction is None or config.instruction in columns else None,
        image=tuple(image for image in images if image is not None),
        instruction=one("instruction", config.instruction, INSTRUCTION_COLUMNS, constant=True, needed=True),
        response=one("response", config.response, RESPONSE_COLUMNS, constant=False, needed=True),
        system=one("system", config.system, ("system",), constant=True, needed=False),
    )
    if problems:
        raise ConfigError(problems)
    return reading


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Make a conversation of one question and one answer, images first."""
    assert reading.instruction is not None
    assert reading.response is not None
    images = _read_images(row, reading)
    if isinstance(images, Problem):
        return images
    instruction = reading.instruction.render(row)
    if isinstance(instruction, Problem):
        return instruction
    answers = read_answers(reading.response.value(row), reading.response.text, reading.texts.answers)
    if isinstance(answers, Problem):
        return answers
    if reading.choices is not None and reading.texts.choices != "ignore":
        asked = ask_with_choices(instruction, answers, row.get(reading.choices), reading.texts.choices)
        if isinstance(asked, Problem):
            return asked
        instruction, answers = asked
    question = [*(Part("image") for _ in images), Part("text", instruction)]
    messages = [Message("user", question), Message("assistant", [Part("text", answers[0])])]
    return Draft(messages, images, answers)


def _read_images(row: RawRow, reading: Reading) -> list[ImageRef] | Problem:
    """Return the images of a row; where columns or templates for them are known, none may be empty."""
    if not reading.image:
        return find_images(row, reading)
    images: list[ImageRef] = []
    for template in reading.image:
        value = template.value(row)
        found = value if isinstance(value, Problem) else as_image_refs(value, template.text)
        if isinstance(found, Problem):
            # a template over an empty column names no image either
            return Problem("image_missing", found.detail)
        if not found:
            return Problem("image_missing", f"{template.text!r} is an empty list")
        images.extend(found)
    return images
