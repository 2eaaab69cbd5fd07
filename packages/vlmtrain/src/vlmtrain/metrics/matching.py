"""Metrics that compare a prediction with each accepted answer and keep the best: exact match, numbers, words, ANLS."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

__all__ = [
    "anls",
    "best_of",
    "canonical_text",
    "exact_match",
    "exact_match_casefold",
    "relaxed_accuracy",
    "token_f1",
]

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05


def canonical_text(text: str) -> str:
    """Return a text with composed characters (NFC) and without white space at its ends.

    Tokenizers such as Qwen's write composed characters: without this, an answer stored decomposed is never matched.
    """
    return unicodedata.normalize("NFC", text).strip()


def best_of(prediction: str, references: Sequence[str], compare: Callable[[str, str], float]) -> float:
    """Return the highest value of `compare(prediction, reference)`.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("a row without a reference cannot be scored")
    return max(compare(prediction, reference) for reference in references)


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 where the prediction is one of the references, apart from white space at the ends and NFC; else 0."""
    return best_of(prediction, references, lambda left, right: float(canonical_text(left) == canonical_text(right)))


def exact_match_casefold(prediction: str, references: Sequence[str]) -> float:
    """Return 1 where the prediction is one of the references, capitals ignored; else 0."""
    return exact_match(prediction.casefold(), [reference.casefold() for reference in references])


def _words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles, as SQuAD compares them."""
    kept = "".join(character for character in canonical_text(text).lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _word_f1(prediction: str, reference: str) -> float:
    predicted, expected = _words_of(prediction), _words_of(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Return the F1 of the words in common with the best reference, normalised as in SQuAD (Rajpurkar et al., 2016).

    Where either side has no word left, the value is 1 if both are empty, else 0 (the rule of SQuAD 2.0).
    """
    return best_of(prediction, references, _word_f1)


def _edit_similarity(prediction: str, reference: str) -> float:
    left, right = (" ".join(canonical_text(text).lower().split()) for text in (prediction, reference))
    similarity = 1 - float(Levenshtein.normalized_distance(left, right))
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def anls(prediction: str, references: Sequence[str]) -> float:
    """Return 1 - edits / longer length for the best reference, and 0 below one half (Biten et al., 2019).

    Capitals and runs of white space do not count. A similarity of exactly one half is kept, as the evaluation server of
    DocVQA does.
    """
    return best_of(prediction, references, _edit_similarity)


def _number_of(text: str) -> float | None:
    """Return the number that a text is, a percentage as a fraction; None where it is not one finite number."""
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _relaxed_match(prediction: str, reference: str) -> float:
    predicted, expected = _number_of(prediction), _number_of(reference)
    if predicted is not None and expected:
        return float(abs(predicted - expected) / abs(expected) <= RELAXED_TOLERANCE)
    return float(prediction.lower() == reference.lower())


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return 1 where a number is within 5 % of a reference, or a text equals one, capitals ignored (ChartQA).

    The rule is that of Masry et al. (2022) as pix2struct computes it: `20%` is 0.2, a reference of zero must be met as
    text, and thousands separators are not read.
    """
    return best_of(canonical_text(prediction), [canonical_text(text) for text in references], _relaxed_match)
