"""Settings of `vlmtrain preview`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlmdata.errors import ConfigError
from vlmtrain.value_checks import not_positive, not_seed

__all__ = ["PreviewConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewConfig:
    """What to show."""

    data: Path
    """Folder that `vlmdata build` made."""
    model: str
    """Model folder or hub id; its processor is loaded, its weights are not."""
    out: Path = Path("preview.html")
    """HTML file to write; one file with everything in it."""
    split: str = "train"
    """Split to show."""
    rows: int = 20
    """Rows to show: the longest, the shortest, and others drawn by the seed."""
    train_on: Literal["all", "last"] = "all"
    """Assistant turns that carry loss: all of them, or the last of each conversation."""
    instruction_part: str | None = None
    """Text with which the model's template opens a user's turn; only for models of an unknown family."""
    response_part: str | None = None
    """Text with which the model's template opens an assistant's turn; only for models of an unknown family."""
    seed: int = 0
    """Of the choice of rows."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        if problems := not_positive(self, "rows") + not_seed(self):
            raise ConfigError(problems)
