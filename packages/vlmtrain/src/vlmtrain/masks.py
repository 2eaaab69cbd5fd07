"""Which tokens carry loss: the assistant's answers and the token that ends each of them, nothing else.

The mask is found in the token ids of the rendered conversation, between the markers with which the family's chat
template opens a user's and an assistant's turn. It gives what Unsloth's `train_on_responses_only` gives on the same
ids (a contract test compares the two), but needs no GPU and does not depend on Unsloth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["IGNORE_INDEX", "MaskRules", "mask_labels", "supervised_spans"]

IGNORE_INDEX = -100
"""The label that PyTorch's cross-entropy leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRules:
    """What the mask of one processor is made from, as token ids."""

    response_ids: tuple[int, ...]
    """Opens an assistant's turn."""
    instruction_ids: tuple[int, ...]
    """Opens a user's turn."""
    stop_ids: frozenset[int]
    """End an answer, and are learned with it: the tokenizer's end of sequence."""
    turn_ids: tuple[int, ...]
    """Common opening of every role's turn, empty when the markers share none; ends an answer, not learned."""
    never_ids: frozenset[int]
    """Padding and image tokens: never carry loss, wherever they stand."""
    bos_id: int | None
    """Begins a sequence; ends an answer when another sequence follows."""


def supervised_spans(input_ids: Sequence[int], rules: MaskRules) -> list[tuple[int, int]]:
    """The half-open ranges of `input_ids` that are answers, each with its end token when it has one.

    Args:
        input_ids: Token ids of one rendered conversation, image tokens expanded or not.
        rules: The processor's markers and special ids.

    Returns:
        Ranges in order. An answer runs from behind the assistant's marker up to and with the first stop token, or
        up to the next turn.
    """
    ids = list(input_ids)
    spans: list[tuple[int, int]] = []
    position = 0
    while (start := _find(ids, rules.response_ids, position)) is not None:
        begin = start + len(rules.response_ids)
        end = _answer_end(ids, begin, rules)
        spans.append((begin, end))
        position = max(end, begin)
    return spans


def mask_labels(input_ids: Sequence[int], rules: MaskRules, *, last_turn_only: bool = False) -> list[int]:
    """Labels of one row: the token itself where it carries loss, `IGNORE_INDEX` elsewhere.

    Args:
        input_ids: `(S,)` token ids of one row.
        rules: The processor's markers and special ids.
        last_turn_only: Learn the last answer only, and take earlier ones as context.

    Returns:
        `(S,)` labels.
    """
    labels = [IGNORE_INDEX] * len(input_ids)
    spans = supervised_spans(input_ids, rules)
    for begin, end in spans[-1:] if last_turn_only else spans:
        for position in range(begin, end):
            if input_ids[position] not in rules.never_ids:
                labels[position] = input_ids[position]
    return labels


def unterminated_spans(input_ids: Sequence[int], rules: MaskRules, stop_ids: Iterable[int]) -> int:
    """How many answers of a row hold no token that makes generation stop.

    Args:
        input_ids: `(S,)` token ids of one row.
        rules: The processor's markers and special ids.
        stop_ids: The ids at which the model's generation stops.
    """
    stops = set(stop_ids) - rules.never_ids
    return sum(stops.isdisjoint(input_ids[begin:end]) for begin, end in supervised_spans(input_ids, rules))


def _answer_end(ids: list[int], begin: int, rules: MaskRules) -> int:
    for position in range(begin, len(ids)):
        token = ids[position]
        if token in rules.stop_ids:
            return position + 1
        if token == rules.bos_id or _starts(ids, rules.response_ids, position):
            return position
        if (rules.turn_ids and _starts(ids, rules.turn_ids, position)) or _starts(ids, rules.instruction_ids, position):
            return position
    return len(ids)


def _find(ids: list[int], pattern: tuple[int, ...], start: int) -> int | None:
    for position in range(start, len(ids) - len(pattern) + 1):
        if _starts(ids, pattern, position):
            return position
    return None


def _starts(ids: list[int], pattern: tuple[int, ...], position: int) -> bool:
    return ids[position] == pattern[0] and tuple(ids[position : position + len(pattern)]) == pattern
