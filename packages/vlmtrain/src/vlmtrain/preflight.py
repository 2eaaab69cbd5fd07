"""The checks before the first step: a run that would learn from the wrong tokens, or none, is refused here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import Family
from vlmdata.shards import Split
from vlmtrain.chat import ChatFormat
from vlmtrain.config import DataConfig
from vlmtrain.image_tokens import ImageTokenCounter, SizeChanges, describe_sizes
from vlmtrain.lengths import RowLengths, count_text_tokens, measure_conversations, measure_lengths
from vlmtrain.masks import mask_labels
from vlmtrain.over_long import Shortened, replace_messages, shorten_rows
from vlmtrain.rows import Rows, open_rows, sample_indices
from vlmtrain.wording import list_some

__all__ = ["CheckedSplit", "check_collator", "check_split", "differing_lengths", "show_masked_row"]

_VERIFIED_ROWS = 16
_SAMPLE_SEED = 0
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
    """Rows above the limit that were left out, because `--over-long drop` asked for it."""
    shortened: Shortened | None
    """What `--over-long truncate` did, if there was something to do."""
    sizes: SizeChanges
    """Pictures that the processor resizes, in the whole split."""
    verified: int
    """Rows whose length was compared with what the processor makes of them."""

    def describe(self) -> str:
        """What was found, for the run's output."""
        tokens = int(self.lengths.tokens.sum())
        share = self.lengths.supervised.sum() / max(tokens, 1)
        dropped = f", {self.dropped} over-long rows left out" if self.dropped else ""
        lines = [
            f"{self.name}: {len(self.rows)} rows{dropped}; tokens a row: median {int(np.median(self.lengths.tokens))}, "
            f"longest {int(self.lengths.tokens.max())} (limit {self.max_length}); "
            f"{self.lengths.image_tokens.sum() / max(tokens, 1):.0%} stand for images, {share:.1%} carry loss",
            self.sizes.describe(),
            f"every answer ends in a token that stops generation; the foreseen lengths of {self.verified} random rows "
            "are the processor's",
        ]
        if self.shortened is not None:
            lines.append(self.shortened.describe())
        return "\n  ".join(lines)


def check_split(split: Split, config: DataConfig, chat: ChatFormat, family: Family | None) -> CheckedSplit:
    """Measures every row of a split and refuses what training would silently do wrong.

    Args:
        split: The split of a built folder.
        config: Limits and what to train on.
        chat: The model's chat format.
        family: The model's family, if it is a known one.

    Raises:
        DataError: Rows above the limit, rows without a supervised token, answers that the mask misses or that no
            stop token ends, placeholders that are no picture's.
        ConfigError: The processor makes other lengths of rows than were foreseen.
    """
    rows = open_rows(split)
    lengths = measure_lengths(split, chat, family, last_turn_only=config.train_on == "last")
    if problems := _mask_problems(split.name, lengths, chat):
        raise DataError("; ".join(problems))
    chosen = sample_indices(len(rows), _VERIFIED_ROWS, _SAMPLE_SEED)
    if wrong := differing_lengths(rows, lengths, chosen, chat):
        row, foreseen, made = wrong[0]
        raise ConfigError(
            f"row {row} of {split.name}: the processor makes {made} tokens of it, {foreseen} were foreseen "
            f"({len(wrong)} of {len(chosen)} random rows differ): it does something that this program does not know of"
        )
    counter = ImageTokenCounter(chat, family)
    sizes = split.stored_sizes()
    limit = config.max_length or int(lengths.tokens.max())
    over = np.flatnonzero(lengths.tokens > limit)
    dropped, shortened = 0, None
    if len(over):
        if config.over_long == "fail":
            raise DataError(_over_long_words(split.name, lengths, over, limit))
        if config.over_long == "truncate":
            added = lengths.image_tokens - np.fromiter(map(len, sizes), np.int64, len(sizes))
            shortened = shorten_rows(
                split.name,
                rows,
                over,
                lambda turns, row: count_text_tokens(turns, chat, counter) + int(added[row]),
                limit,
            )
            rows = replace_messages(rows, shortened.messages)
            lengths = _measure_again(split.name, lengths, shortened, sizes, chat, family, config)
        elif len(over) == len(rows):
            raise DataError(f"{split.name}: every row is longer than --max-length {limit}: raise it")
        else:
            kept = np.flatnonzero(lengths.tokens <= limit)
            rows, lengths, dropped = rows.select(kept), lengths.take(kept), len(over)
    return CheckedSplit(
        name=split.name,
        rows=rows,
        lengths=lengths,
        max_length=limit,
        dropped=dropped,
        shortened=shortened,
        sizes=describe_sizes(sizes, counter, family),
        verified=len(chosen),
    )


def differing_lengths(
    rows: Rows, lengths: RowLengths, chosen: Sequence[int], chat: ChatFormat
) -> list[tuple[int, int, int]]:
    """Rows of which the processor, with the decoded pictures, makes another number of tokens than was foreseen.

    Args:
        rows: Rows `{messages, images}`.
        lengths: What was foreseen of them.
        chosen: Indices of the rows to look at.
        chat: The processor.

    Returns:
        `(row, foreseen, made)` of each row that differs.
    """
    wrong = []
    for row in chosen:
        content = rows[row]
        images = list(content["images"])
        arguments: dict[str, Any] = {"text": [chat.render(content["messages"])], "add_special_tokens": False}
        made = len(chat.processor(**arguments, **({"images": [images]} if images else {}))["input_ids"][0])
        if made != lengths.tokens[row]:
            wrong.append((row, int(lengths.tokens[row]), made))
    return wrong


def _over_long_words(split: str, lengths: RowLengths, over: npt.NDArray[np.int64], limit: int) -> str:
    return (
        f"{split}: {len(over)} of {len(lengths.tokens)} rows are longer than --max-length {limit} "
        f"(rows {list_some(over)}; the longest takes {int(lengths.tokens.max())} tokens); "
        "raise --max-length, build with a smaller --max-side, leave them out with --over-long drop, or cut their text "
        "with --over-long truncate"
    )


def _measure_again(
    split: str,
    lengths: RowLengths,
    shortened: Shortened,
    sizes: Sequence[Sequence[tuple[int, int]]],
    chat: ChatFormat,
    family: Family | None,
    config: DataConfig,
) -> RowLengths:
    """The lengths with those of the shortened rows; what is wrong with a shortened row is refused too."""
    indices = np.fromiter(shortened.messages, np.int64, len(shortened.messages))
    again = measure_conversations(
        split,
        [shortened.messages[int(row)] for row in indices],
        [list(sizes[int(row)]) for row in indices],
        chat,
        family,
        last_turn_only=config.train_on == "last",
    )
    if problems := _mask_problems(f"{split}, shortened", again, chat):
        raise DataError("; ".join(problems))
    return lengths.replace(indices, again)


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
            f"{split}: {len(empty)} of {total} rows have no token that carries loss (rows {list_some(empty)}): "
            f"the marker {chat.markers.response_part!r} was not found in them, or their answers are empty; "
            "`vlmtrain preview` shows what carries loss"
        )
    missing = np.flatnonzero(lengths.missing_spans != 0)
    if len(missing) and not len(empty):
        problems.append(
            f"{split}: in {len(missing)} of {total} rows the mask finds another number of answers than there are "
            f"assistant turns (rows {list_some(missing)}): a turn begins with a line break that melts into the marker, "
            "or holds the template's own tokens"
        )
    stray = np.flatnonzero(lengths.stray_placeholders != 0)
    if len(stray):
        problems.append(
            f"{split}: in {len(stray)} of {total} rows (rows {list_some(stray)}) the rendered text holds more or fewer "
            "image placeholders than the row has pictures: a text spells the model's own image token, or a turn names "
            "a picture that is not there"
        )
    endless = np.flatnonzero(lengths.unterminated > 0)
    if len(endless):
        problems.append(
            f"{split}: in {len(endless)} of {total} rows no token ends the answer (rows {list_some(endless)}), so the "
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
