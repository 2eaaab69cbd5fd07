"""Rows above the limit made shorter: text goes, pictures and the token that ends an answer stay."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import DataError
from vlmtrain.rows import Rows
from vlmtrain.wording import list_some

__all__ = ["Shortened", "replace_messages", "shorten_conversation", "shorten_rows"]

_WORD_END = re.compile(r"\S(?=\s|$)")

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """What `--over-long truncate` did."""

    messages: dict[int, Messages]
    """The new turns of each shortened row, by its index."""
    by_turns: int
    """Rows that lost their last questions and answers, whole."""
    by_words: int
    """Rows whose last answer lost its end."""

    def describe(self) -> str:
        """One line for the run's output; the end of an answer is never lost in silence."""
        cut = (
            f"; in {self.by_words} the last answer is cut between two words and its end token kept, so that the model "
            "learns to stop there: --over-long drop leaves such rows out"
            if self.by_words
            else ""
        )
        return f"{len(self.messages)} rows shortened: {self.by_turns} by whole turns at their end{cut}"


def shorten_rows(
    name: str,
    rows: Rows,
    over: npt.NDArray[np.int64],
    count_tokens: Callable[..., int],
    limit: int,
) -> Shortened:
    """Shortens rows until they fit.

    Args:
        name: Of the split, for messages.
        rows: The split's rows.
        over: Indices of the rows above the limit.
        count_tokens: `(turns, row=index)`: tokens of turns, with the pictures of the row of that index.
        limit: Most tokens.

    Raises:
        DataError: Rows whose pictures and questions alone are above the limit.
    """
    table = rows.select_columns(["messages"])
    shortened: dict[int, Messages] = {}
    by_words = 0
    hopeless: list[int] = []
    for row in (int(each) for each in over):
        messages = table[row]["messages"]
        found = shorten_conversation(messages, functools.partial(count_tokens, row=row), limit)
        if found is None:
            hopeless.append(row)
            continue
        shortened[row], cut_words = found
        by_words += cut_words
    if hopeless:
        raise DataError(
            f"{name}: in {len(hopeless)} rows (rows {list_some(hopeless)}) pictures and questions alone take more than "
            f"--max-length {limit}, and neither is ever cut: raise --max-length, build with a smaller --max-side, or "
            "leave them out with --over-long drop"
        )
    return Shortened(messages=shortened, by_turns=len(shortened) - by_words, by_words=by_words)


def shorten_conversation(
    messages: Sequence[dict[str, Any]], count_tokens: Callable[[Messages], int], limit: int
) -> tuple[Messages, bool] | None:
    """Shortens one conversation.

    Whole questions with their answers go first, from the end, as long as they hold no picture; what is left is well
    formed. If that is not enough, the last answer loses words at its end.

    Args:
        messages: The turns, ending with an assistant's.
        count_tokens: Tokens of turns.
        limit: Most tokens.

    Returns:
        The turns, and whether an answer was cut; None when pictures and questions alone are too long.
    """
    turns = list(messages)
    while count_tokens(turns) > limit:
        earlier = turns[:-2]
        dropped = [part["type"] for message in turns[-2:] for part in message["content"]]
        if "image" in dropped or not any(message["role"] == "assistant" for message in earlier):
            return _cut_answer(turns, count_tokens, limit)
        turns = earlier
    return turns, False


def _cut_answer(turns: Messages, count_tokens: Callable[[Messages], int], limit: int) -> tuple[Messages, bool] | None:
    parts = turns[-1]["content"]
    last = max((i for i, part in enumerate(parts) if part["type"] == "text"), default=None)
    if last is None:
        return None
    text = parts[last]["text"] or ""
    ends = [match.end() for match in _WORD_END.finditer(text)]

    def with_words(count: int) -> Messages:
        part = {**parts[last], "text": text[: ends[count - 1]]}
        return [*turns[:-1], {**turns[-1], "content": [*parts[:last], part]}]

    fitting, too_many = 0, len(ends)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if count_tokens(with_words(middle)) <= limit:
            fitting = middle
        else:
            too_many = middle
    return (with_words(fitting), True) if fitting else None


def replace_messages(rows: Rows, messages: dict[int, Messages]) -> Rows:
    """The same rows with other turns in some of them; pictures stay memory-mapped, texts are held in memory.

    Args:
        rows: Rows `{messages, images}`.
        messages: New turns by the row's index.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, concatenate_datasets

    table = rows.select_columns(["messages"]).with_format("arrow")[:]
    turns = table.column("messages").to_pylist()
    for row, new in messages.items():
        turns[row] = new
    column = pa.array(turns, type=table.schema.field("messages").type)
    info = DatasetInfo(features=rows.select_columns(["messages"]).features)
    texts = Dataset(pa.table({"messages": column}), info=info)
    return concatenate_datasets([texts, rows.select_columns(["images"])], axis=1)
