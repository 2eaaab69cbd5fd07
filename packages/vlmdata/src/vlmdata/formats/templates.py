"""Values of a row by column name, by a template such as `images/{name}.jpg`, or constant."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError
from vlmdata.sample import Problem, RawRow

__all__ = ["Template", "as_text", "list_columns", "parse_template"]

_COLUMNS_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Template:
    """A value that each row fills in.

    Attributes:
        text: as it was given.
        pieces: literal text and, after it, the column whose value follows (None after the last piece).
        is_column: whether it is one column alone, whose value is passed on as it is.
    """

    text: str
    pieces: tuple[tuple[str, str | None], ...]
    is_column: bool

    def value(self, row: RawRow) -> Any:
        """Return the column's own value, or the filled-in text, or a `Problem` where a column is empty."""
        if self.is_column:
            return row.get(self.text)
        filled = []
        for literal, column in self.pieces:
            filled.append(literal)
            if column is not None:
                text = as_text(row.get(column), column)
                if isinstance(text, Problem):
                    return text
                filled.append(text)
        return "".join(filled)

    def render(self, row: RawRow) -> str | Problem:
        """Return the value as text, or a `Problem` where it is empty or no text."""
        value = self.value(row)
        return value if isinstance(value, Problem) else as_text(value, self.text)


def as_text(value: Any, name: str) -> str | Problem:
    """Return a single value as text; numbers are written out, missing and blank values are a `Problem`."""
    if isinstance(value, str):
        return value if value.strip() else Problem("empty_text", f"{name!r} is empty")
    if value is None or (isinstance(value, float) and value != value):
        return Problem("empty_text", f"{name!r} is empty")
    if isinstance(value, bool | int | float):
        return str(value)
    return Problem("not_text", f"{name!r} is a {type(value).__name__}, not text")


def list_columns(columns: Sequence[str]) -> str:
    """Return the columns for an error message."""
    shown = ", ".join(map(repr, columns[:_COLUMNS_SHOWN]))
    more = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    return f"columns: {shown}{more}" if columns else "there are no columns"


def parse_template(option: str, text: str, columns: Sequence[str], *, allow_constant: bool) -> Template:
    """Make a template of what an option was given.

    A column's name wins; then text with `{column}` in it; then, where it is allowed, any text with a space in it.

    Raises:
        ConfigError: it is none of these; the message lists the columns.
    """
    if text in columns:
        return Template(text, (("", text),), is_column=True)
    known = list_columns(columns)
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: {error} (write {{{{ and }}}} for braces); {known}") from None
    pieces = tuple((literal, column) for literal, column, _, _ in parsed)
    used = [column for _, column in pieces if column is not None]
    if unknown := [column for column in used if column not in columns]:
        raise ConfigError(f"{option} {text!r}: no column {', '.join(map(repr, unknown))}; {known}")
    if used:
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ConfigError(f"{option} {text!r}: only {{column}} is understood, without a format after it")
        return Template(text, pieces, is_column=False)
    if allow_constant and " " in text.strip():
        return Template(text, pieces, is_column=False)
    hint = ", nor a constant text, which has a space in it" if allow_constant else ""
    raise ConfigError(f"{option} {text!r}: neither a column nor a template with {{column}}{hint}; {known}")
