"""Rows of a split as questions with accepted answers, and what stands beside a model's own answers to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.shards import BuiltFolder, Split
from vlmtrain.inference import AnsweringModel, Request
from vlmtrain.rows import open_rows, sample_indices, turn_text

__all__ = ["EvalRow", "Questions", "answer_limit", "majority_answer", "read_eval_rows", "swap_images"]

_GENERATION_MARGIN_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRow:
    """One held-out row: what is asked, and what may be answered."""

    id: str
    prompt: Sequence[dict[str, Any]]
    """The messages before the last answer."""
    references: list[str]
    """Accepted answers."""
    position: int
    """Row of the split."""


def read_eval_rows(split: Split, *, limit: int | None, seed: int) -> list[EvalRow]:
    """The rows of a split as questions with references; pictures are not touched.

    Args:
        split: A split of a built folder.
        limit: Most rows, drawn by the seed; None for all.
        seed: Of the draw.
    """
    chosen = set(sample_indices(split.num_rows, limit or split.num_rows, seed))
    rows = []
    for position, row in enumerate(split.iterate(["id", "messages", "references"])):
        if position in chosen:
            rows.append(
                EvalRow(
                    id=row["id"],
                    prompt=row["messages"][:-1],
                    references=list(row["references"]) or [turn_text(row["messages"][-1])],
                    position=position,
                )
            )
    return rows


class Questions(Sequence[Request]):
    """Requests made one at a time, so that no more pictures are decoded at once than a batch holds."""

    def __init__(self, split: Split, rows: list[EvalRow], donors: list[int] | None = None) -> None:
        """Opens the split.

        Args:
            split: Where the pictures are.
            rows: What is asked.
            donors: For each row, the row whose pictures it is shown; unset: its own.
        """
        self._decoded = open_rows(split)
        self._rows = rows
        self._donors = donors or list(range(len(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        images = self._decoded[self._rows[self._donors[index]].position]["images"]
        return Request(messages=self._rows[index].prompt, images=images)


def swap_images(image_counts: Sequence[int], labels: Sequence[str]) -> list[int]:
    """For each row, the row whose pictures it is shown instead of its own.

    Rows change places only with rows of as many pictures. Within such a group, sorted by answer, each row takes the
    pictures from half the group away, so that most rows get those of another answer; a group of one keeps its own.

    Args:
        image_counts: `(N,)` pictures of each row.
        labels: `(N,)` answer of each row.

    Returns:
        `(N,)` row indices, a permutation.
    """
    groups: dict[int, list[int]] = {}
    for row, count in enumerate(image_counts):
        groups.setdefault(count, []).append(row)
    donors = list(range(len(image_counts)))
    for members in groups.values():
        ordered = sorted(members, key=lambda row: (labels[row], row))
        for position, row in enumerate(ordered):
            donors[row] = ordered[(position + len(ordered) // 2) % len(ordered)]
    return donors


def answer_limit(model: AnsweringModel, rows: Sequence[EvalRow]) -> int:
    """Tokens of the longest reference and some more: longer answers are wrong anyway."""
    tokenizer = model.chat.processor.tokenizer
    texts = [text for row in rows for text in row.references]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) + _GENERATION_MARGIN_TOKENS


def majority_answer(folder: BuiltFolder) -> str | None:
    """The most frequent last answer of the training rows; of equally frequent ones, the first by alphabet."""
    if "train" not in folder.splits:
        return None
    counts: Counter[str] = Counter(
        turn_text(row["messages"][-1]) for row in folder.split("train").iterate(["messages"])
    )
    return min(counts, key=lambda text: (-counts[text], text), default=None)
