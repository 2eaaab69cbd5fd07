"""What is counted of a split, by columns: sizes, image tokens, texts, answers; the bytes of images are never read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.families import FAMILIES
from vlmdata.shards import Split

__all__ = ["Bin", "SplitFigures", "count_bins", "count_split", "find_quantile", "merge_figures"]

# Different answers that are told apart; of a set of captions, where each is another, more would only cost memory.
_MOST_ANSWERS = 20_000
_ANSWER_CHARS = 200
# A histogram's bars grow in width, as 1, 2, 5, 10, 20, 50, where the longest value is this many times the middle one.
_SKEWED = 20

_List: TypeAlias = "pa.ListArray[Any]"
_Int64s: TypeAlias = "npt.NDArray[np.int64]"

Bin: TypeAlias = tuple[int, int, int]
"""Lowest and highest value, both inclusive, and how many there are."""


@dataclass(slots=True)
class SplitFigures:
    """Counts of one split, or of several together.

    Attributes:
        rows: how many.
        bytes: of the shards.
        images_per_row: rows by their number of images.
        answers_per_row: rows by their number of assistant turns.
        formats: images by the format they are stored in.
        actions: images by what was done to them.
        salvaged: images whose file ended too early.
        sizes: images by stored (width, height) in px.
        text_chars: rows by the characters of all their texts.
        image_tokens: for each family rows with images by the tokens of all their images; None counts rows with an
            image that the family's processor refuses.
        answers: how often the last turn says what, up to a length.
        has_all_answers: whether `answers` tells all of them apart, or there were too many.
    """

    rows: int = 0
    bytes: int = 0
    images_per_row: Counter[int] = field(default_factory=Counter)
    answers_per_row: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    salvaged: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    text_chars: Counter[int] = field(default_factory=Counter)
    image_tokens: dict[str, Counter[int | None]] = field(default_factory=lambda: {name: Counter() for name in FAMILIES})
    answers: Counter[str] = field(default_factory=Counter)
    has_all_answers: bool = True

    @property
    def images(self) -> int:
        """How many images the rows have."""
        return self.sizes.total()

    @property
    def mean_pixels(self) -> int:
        """Width times height of a stored image, on average."""
        pixels = sum(width * height * count for (width, height), count in self.sizes.items())
        return round(pixels / self.images) if self.images else 0

    def sides(self, pick: Any) -> Counter[int]:
        """Return images by their longest (`pick` is max) or shortest (min) side in px."""
        sides: Counter[int] = Counter()
        for size, count in self.sizes.items():
            sides[pick(size)] += count
        return sides


def count_split(split: Split) -> SplitFigures:
    """Count what a split holds, record batch by record batch."""
    figures = SplitFigures(rows=split.num_rows, bytes=sum(path.stat().st_size for path in split.paths))
    single: Counter[tuple[int, int]] = Counter()
    for batch in split.iterate_batches(["messages", "image_info"]):
        _count_texts(cast(_List, batch.column(0)), figures)
        _count_images(cast(_List, batch.column(1)), figures, single)
    for size, count in single.items():
        _add_tokens(figures, [size], count)
    return figures


def merge_figures(parts: Iterable[SplitFigures]) -> SplitFigures:
    """Return the counts of several splits together."""
    whole = SplitFigures()
    for part in parts:
        whole.rows += part.rows
        whole.bytes += part.bytes
        whole.salvaged += part.salvaged
        whole.has_all_answers &= part.has_all_answers
        for name in ("images_per_row", "answers_per_row", "formats", "actions", "sizes", "text_chars", "answers"):
            getattr(whole, name).update(getattr(part, name))
        for family, counts in part.image_tokens.items():
            whole.image_tokens[family].update(counts)
    return whole


def _count_texts(messages: _List, figures: SplitFigures) -> None:
    turns = cast(pa.StructArray, messages.flatten())
    contents = cast(_List, turns.field("content"))
    texts = cast(pa.StructArray, contents.flatten()).field("text")
    per_row, per_turn = _lengths(messages), _lengths(contents)
    chars = np.asarray(pc.utf8_length(cast("pa.StringArray", texts)).fill_null(0), np.int64)
    in_turn = _sum_pieces(chars, per_turn)
    is_answer = np.asarray(pc.equal(turns.field("role"), pa.scalar("assistant")).cast(pa.int64()))
    _add_values(figures.text_chars, _sum_pieces(in_turn, per_row))
    _add_values(figures.answers_per_row, _sum_pieces(is_answer, per_row))
    last_turn = np.cumsum(per_row) - 1
    first_part = (np.cumsum(per_turn) - per_turn)[last_turn]
    answers = texts.take(pa.array(first_part))
    for answer, count in _count_strings(pc.utf8_slice_codeunits(cast("pa.StringArray", answers), 0, _ANSWER_CHARS)):
        if len(figures.answers) >= _MOST_ANSWERS and answer not in figures.answers:
            figures.has_all_answers = False
        else:
            figures.answers[answer] += count


def _count_images(column: _List, figures: SplitFigures, single: Counter[tuple[int, int]]) -> None:
    info = cast(pa.StructArray, column.flatten())
    per_row = _lengths(column)
    _add_values(figures.images_per_row, per_row)
    for name, counter in (("format", figures.formats), ("action", figures.actions)):
        for value, count in _count_strings(info.field(name)):
            counter[value] += count
    figures.salvaged += int(pc.sum(info.field("salvaged").cast(pa.int64())).as_py() or 0)
    sizes = np.stack([np.asarray(info.field(name), np.int64) for name in ("width", "height")], axis=1)
    _add_sizes(figures.sizes, sizes)
    starts = np.cumsum(per_row) - per_row
    _add_sizes(single, sizes[starts[per_row == 1]])
    for row in np.flatnonzero(per_row > 1).tolist():
        shown = sizes[starts[row] : starts[row] + per_row[row]].tolist()
        _add_tokens(figures, [(width, height) for width, height in shown], 1)


def _add_tokens(figures: SplitFigures, sizes: Sequence[tuple[int, int]], count: int) -> None:
    for family, counter in figures.image_tokens.items():
        tokens = [_count_tokens(family, *size) for size in sizes]
        counter[None if None in tokens else sum(each or 0 for each in tokens)] += count


@cache
def _count_tokens(family: str, width: int, height: int) -> int | None:
    try:
        return FAMILIES[family].grid.image_tokens(width, height)
    except ValueError:  # the processor refuses the shape
        return None


def _lengths(lists: _List) -> _Int64s:
    return np.asarray(lists.value_lengths(), np.int64)


def _sum_pieces(values: _Int64s, lengths: _Int64s) -> _Int64s:
    totals = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(lengths)
    return np.asarray(totals[ends] - totals[ends - lengths], np.int64)


def _count_strings(values: Any) -> list[tuple[str, int]]:
    counted = pc.value_counts(values)
    columns = (cast("pa.Array[Any]", counted.field(name)).to_pylist() for name in ("values", "counts"))
    return cast("list[tuple[str, int]]", list(zip(*columns, strict=True)))


def _add_values(counter: Counter[int], values: _Int64s) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    counter.update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))


def _add_sizes(counter: Counter[tuple[int, int]], sizes: _Int64s) -> None:
    codes: Counter[int] = Counter()
    _add_values(codes, (sizes[:, 0] << 32) | sizes[:, 1])
    for code, count in codes.items():
        counter[code >> 32, code & 0xFFFFFFFF] += count


def find_quantile(counter: Mapping[int, int], part: float) -> int:
    """Return the value below or at which `part` of all values lie, 0 where there are none."""
    left = part * sum(counter.values())
    for value in sorted(counter):
        left -= counter[value]
        if left <= 0:
            return value
    return 0


def count_bins(counter: Mapping[int, int], most: int = 24) -> list[Bin]:
    """Return a histogram of whole numbers, without gaps: bars of equal round width, or growing ones for long tails.

    Args:
        counter: how often each value occurs, values not below 0.
        most: bars at most.
    """
    if not counter:
        return []
    low, high = min(counter), max(counter)
    if high > _SKEWED * max(1, find_quantile(counter, 0.5)):
        edges = [0, *(lead * 10**power for power in range(len(str(high))) for lead in (1, 2, 5)), 10 ** len(str(high))]
    else:
        steps = (lead * 10**power for power in range(20) for lead in (1, 2, 5))
        step = next(step for step in steps if (high - low) / step < most - 1)
        edges = list(range(low // step * step, high + step + 1, step))
    first = max(i for i, edge in enumerate(edges) if edge <= low)
    last = min(i for i, edge in enumerate(edges) if edge > high)
    counts = np.zeros(len(edges), np.int64)
    values = np.fromiter(counter, np.int64, len(counter))
    np.add.at(counts, np.searchsorted(edges, values, side="right") - 1, np.fromiter(counter.values(), np.int64))
    return [(edges[i], edges[i + 1] - 1, int(counts[i])) for i in range(first, last)]
