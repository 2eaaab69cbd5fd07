"""JSON-field accuracy: how many fields of a structured answer are right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vlmdata.errors import DataError
from vlmtrain.metrics.matching import best_of, canonical_text

__all__ = ["json_field_accuracy", "parse_json_answer"]

FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL | re.IGNORECASE)


def parse_json_answer(text: str) -> Any:
    """Return the value that a text is the JSON of, with or without a Markdown fence around it.

    Raises:
        ValueError: The text is not JSON.
        RecursionError: It is nested too deeply to be read.
    """
    stripped = text.strip()
    fenced = FENCE.match(stripped)
    return json.loads(fenced.group(1) if fenced else stripped, parse_constant=str)


def _fields_of(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield each leaf with its path; an empty object or list is a leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields_of(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _fields_of(inner, (*path, index))
    else:
        yield path, value


def _same_field(left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return canonical_text(left) == canonical_text(right)
    # In Python True is 1, in JSON it is not.
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def _field_accuracy(prediction: str, reference: str) -> float:
    try:
        expected = dict(_fields_of(parse_json_answer(reference)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"json_fields needs references that are JSON, not {reference[:60]!r}: {error}") from error
    try:
        predicted = dict(_fields_of(parse_json_answer(prediction)))
    except (ValueError, RecursionError):
        return 0.0
    right = sum(path in predicted and _same_field(predicted[path], value) for path, value in expected.items())
    return right / len(expected.keys() | predicted.keys())


def json_field_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return the share of right fields among the fields of either side, for the best reference.

    A field is a leaf with its path (list items by position). A missing, a wrong and an invented field each count
    against the prediction; a prediction that is not JSON scores 0. `12.50` equals `12.5`, and white space at the ends
    of strings does not count.

    Raises:
        DataError: A reference is not JSON.
    """
    return best_of(prediction, references, _field_accuracy)
