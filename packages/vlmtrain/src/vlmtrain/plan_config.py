"""Settings of `vlmtrain plan`, beside those of adapters and optimizer that it shares with `fit`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlmdata.errors import ConfigError
from vlmtrain.value_checks import not_positive

__all__ = ["PlanConfig"]

_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """What to plan for."""

    model: str
    """Model folder, config.json or hub id; no weights are read."""
    data: Path | None = None
    """Folder that `vlmdata build` made: its longest rows are planned for. Unset: rows of --image and --text-tokens."""
    train_split: str = "train"
    """Split to learn from."""
    rows: int = 1000
    """Training rows, where there is no --data."""
    image: tuple[str, ...] = ()
    """WIDTHxHEIGHT in px of a picture of a row, where there is no --data; again for more. [default: 1000x750]"""
    text_tokens: int = 256
    """Tokens of a row's text, where there is no --data."""
    backend: Literal["unsloth", "transformers"] = "unsloth"
    """Program that would train: the other keeps more for the backward pass."""
    compile_vision: Literal["auto", "on", "off"] = "auto"
    """Whether the blocks of the vision tower are compiled, which may keep less. auto: the figures are of blocks as they
    are, the most that fit takes whichever it chooses."""
    gpu_memory_gb: float | None = None
    """Memory of the GPU in GiB. Unset: that of the GPU here, if there is one."""
    tflops: float | None = None
    """16-bit matrix products of the GPU in 10^12 operations a second. Unset: by the GPU's name."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        problems = not_positive(self, "rows", "text_tokens", "gpu_memory_gb", "tflops")
        problems += [f"image must be WIDTHxHEIGHT, such as 1000x750, not {each!r}" for each in self._unread()]
        if problems:
            raise ConfigError(problems)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """`(width, height)` in px of the pictures of a row."""
        matches = [_SIZE.fullmatch(each) for each in self.image or ("1000x750",)]
        return [(int(match[1]), int(match[2])) for match in matches if match]

    def _unread(self) -> list[str]:
        return [each for each in self.image if not (m := _SIZE.fullmatch(each)) or not int(m[1]) * int(m[2])]
