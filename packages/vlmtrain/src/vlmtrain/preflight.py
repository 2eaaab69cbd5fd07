"""The checks before the first step: a run that would learn from the wrong tokens, or none, is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import Family
from vlmdata.shards import Split
from vlmtrain.chat import ChatFormat
from vlmtrain.config import DataConfig
from vlmtrain.lengths import RowLengths, measure_lengths
from vlmtrain.masks import mask_labels
from vlmtrain.rows import Rows, open_rows

__all__ = ["CheckedSplit", "check_collator", "check_split", "show_masked_row"]

_EXAMPLES = 3
_COLLATOR_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSplit:
    """A split that may be trained on."""

    name: str
    """Of the split."""
    rows: Rows
    """`messages` and `images` of the rows that stay."""
    lengths: RowLengths
    """Of the same rows."""
    max_length: int
    """Tokens of the longest row that stays, or the limit that was set."""
    dropped: int
    """Rows above the limit that were left out, because `--over-length drop` asked for it."""

    def describe(self) -> str:
        """One line for the run's output."""
        tokens = int(self.lengths.tokens.sum())
        share = self.lengths.supervised.sum() / max(tokens, 1)
        dropped = f", {self.dropped} over-long rows left out" if self.dropped else ""
        return (
            f"{self.name}: {len(self.rows)} rows{dropped}; tokens a row: median {int(np.median(self.lengths.tokens))}, "
            f"longest {int(self.lengths.tokens.max())} (limit {self.max_length}); "
            f"{self.lengths.image_tokens.sum() / max(tokens, 1):.0%} stand for images, {share:.1%} carry loss"
        )


def check_split(split: Split, config: DataConfig, chat: ChatFormat, family: Family | None) -> CheckedSplit:
    """Measures every row of a split and refuses what training would silently do wrong.

    Args:
        split: The split of a built folder.
        config: Limits and what to train on.
        chat: The model's chat format.
        family: The model's family, if it is a known one.

    Raises:
        DataError: Rows above the limit, rows without a supervised token, answers that the mask misses or that no
            stop token ends.
    """
    rows = open_rows(split)
    lengths = measure_lengths(split, chat, family, last_turn_only=config.train_on == "last")
    if problems := _mask_problems(split.name, lengths, chat):
        raise DataError("; ".join(problems))
    limit = config.max_length or int(lengths.tokens.max())
    over = np.flatnonzero(lengths.tokens > limit)
    if len(over) and config.over_length == "fail":
        raise DataError(
            f"{split.name}: {len(over)} of {len(rows)} rows are longer than --max-length {limit} "
            f"(rows {_some(over)}; the longest takes {int(lengths.tokens.max())} tokens) and would lose text or image "
            "tokens; "
            "raise --max-length, build with a smaller --max-side, or leave them out with --over-length drop"
        )
    if len(over) == len(rows):
        raise DataError(f"{split.name}: every row is longer than --max-length {limit}")
    if len(over):
        kept = np.flatnonzero(lengths.tokens <= limit)
        rows, lengths = rows.select(kept), _take(lengths, kept)
    return CheckedSplit(name=split.name, rows=rows, lengths=lengths, max_length=limit, dropped=len(over))


def check_collator(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    checked: CheckedSplit,
    chat: ChatFormat,
    *,
    last_turn_only: bool,
) -> None:
    """Runs some rows through the collator that will train, and compares lengths and labels with what was foreseen.

    Args:
        collate: The backend's collator.
        checked: The split.
        chat: The chat format whose mask rules are the reference.
        last_turn_only: Only the last answer carries loss.

    Raises:
        ConfigError: The collator gives other lengths or labels: the chat template or the processor does something
            that this program does not know of.
    """
    longest = int(checked.lengths.tokens.argmax())
    chosen = sorted({*range(min(_COLLATOR_ROWS, len(checked.rows))), longest})
    for row in chosen:
        batch = collate([checked.rows[row]])
        ids = batch["input_ids"][0].tolist()
        labels = batch["labels"][0].tolist()
        expected = mask_labels(ids, chat.rules, last_turn_only=last_turn_only)
        if len(ids) != checked.lengths.tokens[row]:
            raise ConfigError(
                f"row {row} of {checked.name}: the collator makes {len(ids)} tokens of it, "
                f"{int(checked.lengths.tokens[row])} were foreseen"
            )
        if labels != expected:
            differing = sum(a != b for a, b in zip(labels, expected, strict=True))
            raise ConfigError(
                f"row {row} of {checked.name}: the collator puts loss on other tokens than the answers "
                f"({differing} differ)"
            )


def show_masked_row(ids: list[int], labels: list[int], chat: ChatFormat) -> str:
    """One row as text for the eye: what carries loss stands between ⟦ and ⟧, repeated image tokens are counted."""
    pieces: list[str] = []
    learned = False
    position = 0
    while position < len(ids):
        if (labels[position] >= 0) != learned:
            learned = not learned
            pieces.append("⟦" if learned else "⟧")
        run = position
        while run < len(ids) and ids[run] == ids[position] and ids[run] in chat.rules.never_ids:
            run += 1
        if run - position > 1:
            pieces.append(f"{chat.processor.tokenizer.decode([ids[position]])}×{run - position}")
            position = run
            continue
        end = position + 1
        while end < len(ids) and (labels[end] >= 0) == learned and ids[end] not in chat.rules.never_ids:
            end += 1
        pieces.append(chat.processor.tokenizer.decode(ids[position:end]))
        position = end
    return "".join(pieces) + ("⟧" if learned else "")


def _mask_problems(split: str, lengths: RowLengths, chat: ChatFormat) -> list[str]:
    total = len(lengths.tokens)
    problems = []
    empty = np.flatnonzero(lengths.supervised == 0)
    if len(empty):
        problems.append(
            f"{split}: {len(empty)} of {total} rows have no token that carries loss (rows {_some(empty)}): "
            f"the marker {chat.markers.response_part!r} was not found in them, or their answers are empty"
        )
    missing = np.flatnonzero(lengths.missing_spans != 0)
    if len(missing) and not len(empty):
        problems.append(
            f"{split}: in {len(missing)} of {total} rows the mask finds another number of answers than there are "
            f"assistant turns (rows {_some(missing)}): a turn begins with a line break that melts into the marker, "
            "or holds the template's own tokens"
        )
    endless = np.flatnonzero(lengths.unterminated > 0)
    if len(endless):
        problems.append(
            f"{split}: in {len(endless)} of {total} rows no token ends the answer (rows {_some(endless)}), so the "
            f"model would never learn to stop: generation stops at {_token_names(chat)}, "
            + (
                "which is also the padding token and never carries loss; give the tokenizer another padding token"
                if chat.stop_ids and chat.stop_ids <= chat.rules.never_ids
                else "and the model's chat template writes none of these behind an answer"
            )
        )
    return problems


def _token_names(chat: ChatFormat) -> str:
    return ", ".join(repr(chat.processor.tokenizer.decode([i])) for i in sorted(chat.stop_ids)) or "no token at all"


def _some(rows: npt.NDArray[np.int64]) -> str:
    shown = ", ".join(str(int(row)) for row in rows[:_EXAMPLES])
    return shown + (", …" if len(rows) > _EXAMPLES else "")


def _take(lengths: RowLengths, kept: npt.NDArray[np.int64]) -> RowLengths:
    return RowLengths(
        tokens=lengths.tokens[kept],
        image_tokens=lengths.image_tokens[kept],
        supervised=lengths.supervised[kept],
        missing_spans=lengths.missing_spans[kept],
        unterminated=lengths.unterminated[kept],
    )
