"""The options of a build that say what an image must be, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlmdata.errors import ConfigError
from vlmdata.families import fixed_point_size, get_family

__all__ = ["ImageConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """What an image must be, and what is made of it."""

    min_side: int = 300
    """Shorter side in px below which an image is small (see --small)."""
    max_side: int = 1000
    """Longest side in px; a long strip that cannot meet both bounds meets this one (see --strips)."""
    small: Literal["upscale", "keep", "reject"] = "upscale"
    """What to do with an image whose shorter side is below --min-side."""
    strips: Literal["shrink", "reject"] = "shrink"
    """What to do with a long strip that cannot meet both bounds: bring its longest side to --max-side, or reject it."""
    max_upscale: float = 4.0
    """How many times a small image may be enlarged at most."""
    size: str | None = None
    """Exact size of every image, WIDTHxHEIGHT in px, in place of the bounds."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """How an image is brought to --size: white margins, cut edges, or another aspect ratio."""
    multiple_of: int = 1
    """Both sides become multiples of this many px."""
    for_: str | None = None
    """Model family (qwen2.5-vl, gemma3, …) whose image processor should leave the stored pictures as they are, within
    the bounds, so that nothing is resampled twice."""
    window: str = "auto"
    """Values of a 16-bit, 32-bit or float image that become black and white: auto (its own used range), full (the
    range of its type) or LOW:HIGH."""
    pages: Literal["reject", "first", "all"] = "reject"
    """What to do with a file of several pages; all shows every page, in order, in the place of the one image. Of an
    animation it is always the first frame that counts."""
    max_pages: int = 100
    """Files of more pages are rejected under --pages all."""
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
                ("max_pages", 1),
            )
            if not getattr(self, name) >= least
        ]
        if self.min_side > self.max_side:
            problems.append(f"min_side {self.min_side!r} is above max_side {self.max_side!r}")
        if not 1 <= self.jpeg_quality <= 100:
            problems.append(f"jpeg_quality must be between 1 and 100, not {self.jpeg_quality!r}")
        if not problems:
            problems += self._size_problems() or self._family_problems()
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

    def _family_problems(self) -> list[str]:
        """What keeps `for_` from being met, for any picture."""
        if self.for_ is None:
            return []
        try:
            family = get_family(self.for_)
        except ConfigError as error:
            return [f"--for: {error}"]
        grid = family.grid
        if self.size_px is not None:
            kept = grid.processed_size(*self.size_px)
            made = f"{kept[0]}x{kept[1]} px of it"
            refusal = f"size {self.size!r} is not left alone by the processor of --for {self.for_}, which makes {made}"
            return [] if kept == self.size_px else [refusal]
        if grid.side_step_px is None:
            return []
        if grid.side_step_px % self.multiple_of:
            return [
                f"multiple_of {self.multiple_of!r} and --for {self.for_} contradict each other: its processor leaves "
                f"multiples of {grid.side_step_px} px alone; give one of the two"
            ]
        if self.fixed_point(self.max_side, self.max_side) is None:
            return [
                f"max_side {self.max_side!r} is too small for --for {self.for_}: its processor enlarges any picture"
            ]
        return []

    @property
    def expects_fixed_points(self) -> bool:
        """Whether `for_` names a family whose processor leaves some sizes alone, and sizes are to be worked out."""
        return self.for_ is not None and self.size is None and get_family(self.for_).grid.side_step_px is not None

    def fixed_point(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the size within the bounds that the processor of `for_` leaves alone, None where there is none.

        Args:
            width: of an upright picture, in px.
            height: the same.

        Raises:
            ValueError: the processor refuses the picture for its aspect ratio.
        """
        if self.for_ is None:
            return None
        return fixed_point_size(
            get_family(self.for_).grid,
            width,
            height,
            max_side=self.max_side,
            min_side=self.min_side if self.small == "upscale" else 1,
            max_upscale=self.max_upscale,
        )

    def describe_family(self) -> str | None:
        """Return in words what `for_` means for the stored sizes."""
        if self.for_ is None:
            return None
        family = get_family(self.for_)
        step = family.grid.side_step_px
        if self.size is not None:
            return f"--for {self.for_}: {self.size} px fits its processor (every picture: {family.resizing})"
        if step is None:
            return (
                f"--for {self.for_}: its processor leaves no size alone (every picture: {family.resizing}); "
                "the bounds alone decide what is stored"
            )
        sides = f"both sides are multiples of {step} px" if step > 1 else "sizes are those that fill its tiles"
        return f"--for {self.for_}: stored sizes are left alone by its processor ({sides})"

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
