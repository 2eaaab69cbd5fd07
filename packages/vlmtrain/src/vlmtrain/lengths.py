"""How many tokens each row takes, and how many of them carry loss, without decoding a picture.

The text is tokenised as the template writes it, with one placeholder an image; what the processor puts in a
placeholder's stead depends on the stored size alone. Large sets go through several processes.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import DataError, ResourceError
from vlmdata.families import Family
from vlmdata.shards import Split
from vlmtrain.chat import ChatFormat
from vlmtrain.family_rows import FamilyRows
from vlmtrain.image_tokens import ImageTokenCounter, find_placeholder_ids
from vlmtrain.memory import StepLoad
from vlmtrain.span_counts import count_spans

__all__ = ["RowLengths", "count_text_tokens", "heaviest_step", "measure_conversations", "measure_lengths", "tokenise"]

_PARALLEL_ROWS = 4_000
"""Below this, starting processes costs more than it saves."""
_MOST_PROCESSES = 16

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLengths:
    """What preflight and the trainer need to know of each row of a split, as arrays of one value a row."""

    tokens: _Ints
    """`(N,)` tokens, image tokens included."""
    image_tokens: _Ints
    """`(N,)` of them stand for images."""
    supervised: _Ints
    """`(N,)` of them carry loss."""
    missing_spans: _Ints
    """`(N,)` assistant turns in which the mask found no answer."""
    unterminated: _Ints
    """`(N,)` answers that hold no token at which generation stops."""
    stray_placeholders: _Ints
    """`(N,)` image placeholders beyond (below: negative) the row's pictures."""
    patches: _Ints
    """`(N,)` positions of the vision tower for the row's pictures."""

    def take(self, rows: _Ints) -> RowLengths:
        """The same of some rows."""
        return RowLengths(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})

    def replace(self, rows: _Ints, others: RowLengths) -> RowLengths:
        """The same with other values for some rows."""
        columns = {field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)}
        for name, column in columns.items():
            column[rows] = getattr(others, name)
        return RowLengths(**columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextWork:
    """What a process needs to measure texts; inherited by forking, never pickled."""

    name: str
    batches: list[tuple[int, Any]]
    chat: ChatFormat
    counter: ImageTokenCounter
    placeholder_ids: frozenset[int]
    family: Family | None
    last_turn_only: bool


_COLUMNS = 5
_work: _TextWork | None = None


def measure_lengths(
    split: Split,
    chat: ChatFormat,
    family: Family | None,
    *,
    last_turn_only: bool = False,
    processes: int | None = None,
) -> RowLengths:
    """Measures every row of a split, from its text and the stored sizes of its pictures.

    Args:
        split: The split of a built folder.
        chat: The processor and its mask rules.
        family: The model's family, if it is a known one.
        last_turn_only: Only the last answer carries loss.
        processes: Processes to use; None: one for each core where the set is large enough.

    Returns:
        Arrays of one value a row.

    Raises:
        DataError: The family cannot represent a row, the template refuses one, or the processor a picture's size.
        ResourceError: A process was killed, as happens when memory is short.
    """
    batches = list(_batches(split))
    return _measure(split.name, batches, split.stored_sizes(), chat, family, last_turn_only, processes)


def measure_conversations(
    name: str,
    messages: list[Any],
    sizes: list[list[tuple[int, int]]],
    chat: ChatFormat,
    family: Family | None,
    *,
    last_turn_only: bool = False,
) -> RowLengths:
    """The same of turns in memory.

    Args:
        name: Of where they come from, for messages.
        messages: Turns of each row.
        sizes: `(width, height)` in px of each picture of each row.
        chat: The processor and its mask rules.
        family: The model's family, if it is a known one.
        last_turn_only: Only the last answer carries loss.
    """
    return _measure(name, [(0, messages)], sizes, chat, family, last_turn_only, 1)


def _measure(
    name: str,
    batches: list[tuple[int, Any]],
    sizes: list[list[tuple[int, int]]],
    chat: ChatFormat,
    family: Family | None,
    last_turn_only: bool,
    processes: int | None,
) -> RowLengths:
    counter = ImageTokenCounter(chat, family)
    added = _image_tokens(name, sizes, counter)
    pictures = np.fromiter((len(row) for row in sizes), np.int64, len(sizes))
    work = _TextWork(
        name=name,
        batches=batches,
        chat=chat,
        counter=counter,
        placeholder_ids=find_placeholder_ids(chat, counter),
        family=family,
        last_turn_only=last_turn_only,
    )
    text, supervised, missing, unterminated, placeholders = _measure_texts(work, len(sizes), processes)
    return RowLengths(
        tokens=text + added,
        image_tokens=added + pictures,
        supervised=supervised,
        missing_spans=missing,
        unterminated=unterminated,
        stray_placeholders=placeholders - len(work.placeholder_ids) * pictures,
        patches=np.array([sum([counter.count_patches(*size) for size in row]) for row in sizes], np.int64),
    )


def tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts; the rows of one call share a pass through the fast tokenizer.

    The offsets that a tokenizer keeps by default cost a fifth of the time, and nobody asks for them here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    # A fast tokenizer keeps the truncation and padding of its last call.
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def count_text_tokens(messages: Any, chat: ChatFormat, counter: ImageTokenCounter) -> int:
    """Tokens of one conversation with a placeholder for each picture."""
    return len(tokenise(chat.processor.tokenizer, [counter.write_around_images(chat.render(messages))])[0])


def heaviest_step(lengths: RowLengths, batch_size: int) -> StepLoad:
    """The micro-batch that takes the most memory: the longest rows, and the most patches, at once.

    Args:
        lengths: Of the rows.
        batch_size: Rows of a micro-batch.
    """
    rows = min(batch_size, len(lengths.tokens))
    patches = int(np.sort(lengths.patches)[-rows:].sum())
    supervised = int(np.sort(lengths.supervised)[-rows:].sum())
    return StepLoad(rows=rows, tokens=rows * int(lengths.tokens.max()), patches=patches, loss_tokens=supervised)


def _image_tokens(split: str, sizes: list[list[tuple[int, int]]], counter: ImageTokenCounter) -> _Ints:
    totals = np.zeros(len(sizes), np.int64)
    for row, of_row in enumerate(sizes):
        try:
            totals[row] = sum([counter(*size) for size in of_row])
        except ValueError as error:
            raise DataError(f"{split}: row {row}: the processor refuses a picture: {error}") from error
    return totals


def _measure_texts(work: _TextWork, rows: int, processes: int | None) -> npt.NDArray[np.int64]:
    from tqdm import tqdm

    wanted = processes or (min(_cores(), _MOST_PROCESSES) if rows >= _PARALLEL_ROWS else 1)
    parallel = wanted > 1 and _can_fork()
    results = _spread(work, wanted) if parallel else (_measure_batch(work, *each) for each in work.batches)
    columns = np.zeros((_COLUMNS, rows), np.int64)
    family_rows = FamilyRows(work.family)
    with tqdm(total=rows, desc="checking rows", unit="row", delay=2, disable=None) as progress:
        for (start, _), (values, unfit) in zip(work.batches, results, strict=True):
            columns[:, start : start + values.shape[1]] = values
            for row, problem in unfit:
                family_rows.add(row, problem)
            progress.update(values.shape[1])
    family_rows.require_none(work.name)
    return columns


_Result = tuple[_Ints, list[tuple[int, str]]]


def _spread(work: _TextWork, processes: int) -> Iterator[_Result]:
    global _work
    _work = work
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            yield from pool.map(_measure_numbered, range(len(work.batches)), chunksize=4)
    except BrokenProcessPool as error:
        raise ResourceError(f"{work.name}: a process that measured rows was killed: is memory short?") from error
    finally:
        _work = None


def _measure_numbered(number: int) -> _Result:
    if _work is None:
        raise RuntimeError("the process was not forked from one with work to do")
    return _measure_batch(_work, *_work.batches[number])


def _measure_batch(work: _TextWork, start: int, batch: Any) -> _Result:
    """Lengths, learned tokens, missing and endless answers and placeholders of some rows, `(5, N)`."""
    messages = batch if isinstance(batch, list) else batch.to_pylist()
    family_rows = FamilyRows(work.family)
    unfit = [(start + i, problem) for i, each in enumerate(messages) if (problem := family_rows.problem(each))]
    texts = [_render(work.chat, each, f"{work.name}: row {start + i}") for i, each in enumerate(messages)]
    ids = tokenise(work.chat.processor.tokenizer, [work.counter.write_around_images(text) for text in texts])
    spans = count_spans(ids, work.chat.rules, work.chat.stop_ids, last_turn_only=work.last_turn_only)
    answers = np.array([sum(each["role"] == "assistant" for each in row) for row in messages], np.int64)
    placeholders = [sum([row.count(each) for each in work.placeholder_ids]) for row in ids]
    columns = [[len(row) for row in ids], spans.supervised, answers - spans.spans, spans.unterminated, placeholders]
    return np.array(columns, np.int64), unfit


def _render(chat: ChatFormat, messages: Any, row: str) -> str:
    try:
        return chat.render(messages)
    except DataError as error:
        raise DataError(f"{row}: {error}") from error


def _batches(split: Split) -> Iterator[tuple[int, Any]]:
    start = 0
    for batch in split.iterate_batches(["messages"]):
        yield start, batch.column(0)
        start += batch.num_rows


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_fork() -> bool:
    # The system libraries of a Mac do not survive a fork.
    return "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
