"""VQA accuracy over ten annotators, with the answer normalisation of the VQA evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["normalise_answer", "vqa_accuracy"]

NUMBER_WORDS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've
    you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:index] + word[index + 1 :] for index, character in enumerate(word) if character == "'"]


REPAIRED = {broken: whole for whole in CONTRACTIONS for broken in _without_one_apostrophe(whole)}
"""Contractions written with one apostrophe too few, and their right form."""


def normalise_answer(answer: str) -> str:
    """Return an answer as the VQA evaluation compares it (Antol et al., 2015, and its evaluation code).

    Lower case; punctuation removed where it touches a space or the answer has a thousands separator, else made a space;
    points removed unless a digit follows; number words up to ten made digits; articles dropped; contractions given
    their apostrophes back.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    has_separator = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches_space or has_separator else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = (NUMBER_WORDS.get(word, word) for word in cleaned.lower().split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return min(1, agreeing annotators / 3), averaged over leaving each annotator out.

    `references` are the answers of all annotators, repeated as often as they were given (ten in VQA; any number from
    two works). One single reference cannot be left out: it is compared alone.
    Prediction and references are always normalised; the evaluation code leaves references alone where all are equal.

    Raises:
        ValueError: There is no reference.
    """
    if not references:
        raise ValueError("a row without a reference cannot be scored")
    answer = normalise_answer(prediction)
    agrees = [normalise_answer(reference) == answer for reference in references]
    if len(agrees) == 1:
        return float(agrees[0])
    agreeing = sum(agrees)
    return sum(min(1.0, (agreeing - own) / 3) for own in agrees) / len(agrees)
