"""Several accepted answers, and answers out of lettered choices."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import as_text
from vlmdata.sample import Problem, RawRow

__all__ = ["ANSWER_NUMBER", "ask_with_choices", "expand_answers", "read_answers"]

# Rows made by `--answers all` carry the number of their answer under this name, which no reader gives to a column.
ANSWER_NUMBER = "\0answer"


def read_answers(value: Any, name: str, wanted: str = "first") -> list[str] | Problem:
    """Return every accepted answer once; the one to train on comes first.

    Args:
        value: a single value, or a list of values or of `{"answer": …}` as VQAv2 and its kin have it.
        name: of the column, for messages.
        wanted: `most-common` puts the answer that most of the list agree on first (the earlier one of two); anything
            else keeps the order.
    """
    if isinstance(value, Problem):
        return value
    if not isinstance(value, list | tuple):
        text = as_text(value, name)
        return text if isinstance(text, Problem) else [text]
    answers: Counter[str] = Counter()
    for item in value:
        text = as_text(_plain(item), name)
        if not isinstance(text, Problem):
            answers[text] += 1
        elif text.reason != "empty_text":
            return text
    if not answers:
        return Problem("empty_text", f"{name!r} holds no answer")
    if wanted != "most-common":
        return list(answers)
    # sorting is stable: of equally common answers the earlier one wins
    common = max(answers, key=lambda text: answers[text])
    return [common, *(text for text in answers if text != common)]


def _plain(item: Any) -> Any:
    return item.get("answer") if isinstance(item, dict) else item


def expand_answers(
    rows: Iterable[tuple[int, RawRow | Problem]], reading: Reading
) -> Iterator[tuple[int, RawRow | Problem]]:
    """With `--answers all`, yield a row for each different answer of a row; else the rows as they are."""
    column = reading.response.text if reading.response is not None and reading.response.is_column else None
    if reading.texts.answers != "all" or column is None:
        yield from rows
        return
    for index, row in rows:
        if isinstance(row, Problem):
            yield index, row
            continue
        different = _tell_apart(row.get(column))
        if len(different) < 2:
            yield index, row
            continue
        for i, item in enumerate(different):
            others = [each for j, each in enumerate(different) if j != i]
            yield index, {**row, column: [item, *others], ANSWER_NUMBER: i + 1}


def _tell_apart(value: Any) -> list[Any]:
    """Return the first item for each different answer; nothing where the list holds something else."""
    found: dict[str, Any] = {}
    for item in value if isinstance(value, list | tuple) else ():
        text = as_text(_plain(item), "")
        if not isinstance(text, Problem):
            found.setdefault(text, item)
        elif text.reason != "empty_text":
            return []
    return list(found.values())


def ask_with_choices(question: str, answers: list[str], choices: Any, wanted: str) -> tuple[str, list[str]] | Problem:
    """Add lettered choices to a question, and name the right one by its letter or its text.

    Args:
        question: what is asked.
        answers: the first names the choice by its text, its letter or its 0-based number, in this order.
        choices: a list of texts, a list as JSON, or a text that is added as it is.
        wanted: `letter` or `text`, the form of the answer to train on; the other one is accepted too.
    """
    texts = _read_choices(choices)
    if isinstance(texts, Problem):
        return texts
    if not texts:
        extra = choices if isinstance(choices, str) and choices.strip() and choices.strip() != "[]" else ""
        return (f"{question}\n{extra}" if extra else question), answers
    if len(texts) > len(string.ascii_uppercase):
        return Problem("bad_choices", f"{len(texts)} choices, more than there are letters")
    place = _find_choice(answers[0], texts)
    if place is None:
        return Problem("bad_choices", f"the answer {answers[0]!r:.60} is none of the {len(texts)} choices")
    letter = string.ascii_uppercase[place]
    listed = "\n".join(f"{mark}. {text}" for mark, text in zip(string.ascii_uppercase, texts, strict=False))
    accepted = [letter, texts[place]] if wanted == "letter" else [texts[place], letter]
    return f"{question}\n{listed}", accepted


def _read_choices(value: Any) -> list[str] | Problem:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, list | tuple):
        return []
    texts = []
    for item in value:
        text = as_text(item, "choices")
        if isinstance(text, Problem):
            return Problem("bad_choices", f"a choice is empty or no text ({text.detail})")
        texts.append(text)
    return texts


def _find_choice(answer: str, texts: list[str]) -> int | None:
    answer = answer.strip()
    stripped = [text.strip() for text in texts]
    if answer in stripped:
        return stripped.index(answer)
    if len(answer) == 1 and answer.upper() in string.ascii_uppercase[: len(texts)]:
        return string.ascii_uppercase.index(answer.upper())
    if answer.isascii() and answer.isdigit() and len(answer) < 4 and int(answer) < len(texts):
        return int(answer)
    return None
