"""Character and word error rates, through jiwer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import jiwer

__all__ = ["cer", "character_edits", "wer", "word_edits"]


def _best_edits(
    prediction: str, references: Sequence[str], process: Callable[[str, str], Any], tidy: Callable[[str], str]
) -> tuple[int, int]:
    """Return edits and reference length for the reference with the lowest rate, the first of equals.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("a row without a reference cannot be scored")
    counted = []
    for reference in references:
        result = process(tidy(reference), tidy(prediction))
        edits = result.substitutions + result.deletions + result.insertions
        counted.append((edits, result.hits + result.substitutions + result.deletions))
    return min(counted, key=lambda pair: _rate(*pair))


def _rate(edits: int, length: int) -> float:
    """Edits per unit of the reference; for an empty reference the number of edits, as in jiwer."""
    return edits / length if length else float(edits)


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _split_lines(text: str) -> str:
    """Make every run of white space one space: jiwer splits at spaces only, which joins words across lines."""
    return " ".join(_compose(text).split())


def character_edits(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """Return the character edits to the best reference, and that reference's length in characters."""
    return _best_edits(prediction, references, jiwer.process_characters, _compose)


def word_edits(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """Return the word edits to the best reference, and that reference's length in words."""
    return _best_edits(prediction, references, jiwer.process_words, _split_lines)


def cer(prediction: str, references: Sequence[str]) -> float:
    """Return the character error rate against the best reference: 0 is perfect, and it may pass 1.

    White space at the ends is dropped; white space inside counts. For an empty reference it is the number of
    characters written, as in jiwer.
    """
    return _rate(*character_edits(prediction, references))


def wer(prediction: str, references: Sequence[str]) -> float:
    """Return the word error rate against the best reference: 0 is perfect, and it may pass 1.

    Words are what white space parts; line breaks are white space. For an empty reference it is the number of words
    written, as in jiwer.
    """
    return _rate(*word_edits(prediction, references))
