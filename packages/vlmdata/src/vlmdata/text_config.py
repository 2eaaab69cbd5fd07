"""The options of a build that say what texts, answers and boxes of a row must be and become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlmdata.errors import ConfigError

__all__ = ["TextConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """What the texts of a row must be, which of several answers counts, and what boxes mean."""

    answers: Literal["first", "all", "most-common"] = "first"
    """Which of several answers in a list is trained on; all makes a row of each different one. Every answer is kept
    in the references column."""
    choices: Literal["letter", "text", "ignore"] = "letter"
    """How a question with choices (a column choices or options) is answered: by the letter or the text of the choice,
    lettered choices standing below the question; or as if there were none."""
    max_chars: int = 1_000_000
    """Characters that all turns of a row may have together."""
    max_repetition: float = 1.0
    """Share of a text that may repeat what stands earlier in it, in windows of 16 characters; 1 permits everything."""
    control_characters: Literal["reject", "strip"] = "reject"
    """What to do with control characters in text: reject the row, or take them out."""
    box_format: Literal["xyxy", "xywh", "cxcywh", "xyxy-norm", "xywh-norm", "cxcywh-norm", "xyxy-1000"] | None = None
    """How boxes are written, in the column objects and in texts ("bbox_2d": [x1, y1, x2, y2] in JSON, box tags): two
    corners, corner and size, or centre and size, in px of the original image, from 0 to 1 (-norm) or from 0 to 1000.
    They follow their image into its stored size. Without it, objects are left out, and texts left as they are."""

    def __post_init__(self) -> None:
        """Check the limits."""
        problems = []
        if self.max_chars < 1:
            problems.append(f"max_chars must be at least 1, not {self.max_chars!r}")
        if not 0 <= self.max_repetition <= 1:
            problems.append(f"max_repetition must be between 0 and 1, not {self.max_repetition!r}")
        if problems:
            raise ConfigError(problems)
