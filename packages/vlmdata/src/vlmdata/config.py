"""The options of a build, as frozen dataclasses that check themselves; their attribute docstrings are the help texts.

Nothing heavy is imported here: `vlmdata --help` reads this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlmdata.errors import ConfigError

__all__ = ["DedupConfig", "ImageConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """What an image must be, and what is made of it."""

    min_side: int = 300
    """Shorter side in px below which an image is small (see --small)."""
    max_side: int = 1000
    """Longest side in px; wins over --min-side where a long strip cannot meet both."""
    small: Literal["upscale", "keep", "reject"] = "upscale"
    """What to do with an image whose shorter side is below --min-side."""
    max_upscale: float = 4.0
    """How many times a small image may be enlarged at most."""
    size: str | None = None
    """Exact size of every image, WIDTHxHEIGHT in px, in place of the bounds."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """How an image is brought to --size: white margins, cut edges, or another aspect ratio."""
    multiple_of: int = 1
    """Both sides become multiples of this many px."""
    window: str = "auto"
    """Values of a 16-bit, 32-bit or float image that become black and white: auto (its own used range), full (the
    range of its type) or LOW:HIGH."""
    pages: Literal["reject", "first"] = "reject"
    """What to do with a file of several pages."""
    salvage_truncated: bool = False
    """Keep images whose file ends too early, marked as such."""
    max_pixels: int = 89_478_485
    """Images of more pixels are rejected unread."""
    max_image_bytes: int = 128 * 1024 * 1024
    """Files of more bytes are rejected unread."""
    max_aspect_ratio: float = 200.0
    """Longest over shortest side at most; Qwen processors refuse more than 200."""
    smallest_side: int = 4
    """Images with a shorter side below this many px are rejected (spacers, tracking pixels)."""
    jpeg_quality: int = 92
    """Quality of the JPEG files that are written; colours are not subsampled."""

    def __post_init__(self) -> None:
        """Check every field and name all problems at once."""
        problems = [
            f"{name} must be at least {least}, not {getattr(self, name)!r}"
            for name, least in (
                ("min_side", 1),
                ("max_side", 1),
                ("max_upscale", 1),
                ("multiple_of", 1),
                ("max_pixels", 1),
                ("max_image_bytes", 1),
                ("max_aspect_ratio", 1),
                ("smallest_side", 1),
            )
            if not getattr(self, name) >= least
        ]
        if self.min_side > self.max_side:
            problems.append(f"min_side {self.min_side!r} is above max_side {self.max_side!r}")
        if not 1 <= self.jpeg_quality <= 100:
            problems.append(f"jpeg_quality must be between 1 and 100, not {self.jpeg_quality!r}")
        if not problems:
            problems += self._size_problems()
        if self.window not in ("auto", "full"):
            try:
                low, high = self.window_bounds or (1.0, 0.0)
            except ValueError:
                low, high = 1.0, 0.0
            if not low < high:
                problems.append(f"window must be auto, full or LOW:HIGH with LOW below HIGH, not {self.window!r}")
        if problems:
            raise ConfigError(problems)

    def _size_problems(self) -> list[str]:
        if self.size is None:
            if self.max_side < self.multiple_of:
                return [f"multiple_of {self.multiple_of!r} does not fit in max_side {self.max_side!r}"]
            return []
        try:
            width, height = self.size_px or (0, 0)
        except ValueError:
            width, height = 0, 0
        if min(width, height) < 1:
            return [f"size must be WIDTHxHEIGHT in px, as in 512x512, not {self.size!r}"]
        if width % self.multiple_of or height % self.multiple_of:
            return [f"size {self.size!r} is not a multiple of {self.multiple_of!r} on both sides"]
        return []

    @property
    def size_px(self) -> tuple[int, int] | None:
        """`size` as (width, height) in px."""
        if self.size is None:
            return None
        width, _, height = self.size.lower().partition("x")
        return int(width), int(height)

    @property
    def window_bounds(self) -> tuple[float, float] | None:
        """`window` as (low, high) where it is given in numbers."""
        if self.window in ("auto", "full"):
            return None
        low, _, high = self.window.partition(":")
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig:
    """Which rows count as duplicates of each other."""

    dedup: Literal["none", "exact", "near"] = "near"
    """Drop no duplicates, rows with equal pixels, or also rows with nearly the same picture."""
    dedup_scope: Literal["pair", "image"] = "pair"
    """Rows are duplicates if images and text agree (pair), or if the images do, whatever the text (image)."""
    near_distance: int = 31
    """Bits of 256 in which the perceptual hashes of two near-duplicates may differ."""

    def __post_init__(self) -> None:
        """Check the distance."""
        if not 0 <= self.near_distance <= 64:
            raise ConfigError(f"near_distance must be between 0 and 64 of 256 bits, not {self.near_distance!r}")
