"""What a family's image processor makes of a picture's size, and how many tokens that takes; nothing is decoded.

Each class repeats the arithmetic of one transformers image processor (5.17), to its rounding, and is tested against
it. Sizes are (width, height) in px throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "CropGrid",
    "ImageGrid",
    "PatchGrid",
    "PinpointGrid",
    "RowGrid",
    "Size",
    "StretchGrid",
    "TileGrid",
]

Size = tuple[int, int]


class ImageGrid(Protocol):
    """The numbers of one image processor, and what follows from them."""

    @property
    def side_step_px(self) -> int | None:
        """Both sides of a stored picture must be multiples of this to be left alone; None: no size is left alone."""

    def processed_size(self, width: int, height: int) -> Size:
        """Size of the whole picture after resizing, before it is cut into tiles or padded."""

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens in the input ids that stand for the picture, row breaks included."""

    def vision_patches(self, width: int, height: int) -> int:
        """Positions that the vision tower attends over for the picture, in all of its tiles together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchGrid:
    """Qwen: any size, rounded to whole tokens within bounds on the area."""

    patch_px: int
    merge: int
    """Patches a side that make one token."""
    min_pixels: int
    max_pixels: int

    @property
    def side_step_px(self) -> int:
        """Side of the square that one token shows."""
        return self.patch_px * self.merge

    def processed_size(self, width: int, height: int) -> Size:
        """Round both sides to whole tokens; outside the bounds on the area, scale first.

        Raises:
            ValueError: One side is more than 200 times the other, which the processor refuses.
        """
        if max(width, height) > 200 * min(width, height):
            raise ValueError(f"{width}x{height} px: one side is more than 200 times the other")
        step = self.side_step_px
        sides = [round(side / step) * step for side in (width, height)]
        if sides[0] * sides[1] > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            sides = [max(step, math.floor(side / shrink / step) * step) for side in (width, height)]
        elif sides[0] * sides[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            sides = [math.ceil(side * grow / step) * step for side in (width, height)]
        return sides[0], sides[1]

    def image_tokens(self, width: int, height: int) -> int:
        """One token for each square of `side_step_px`."""
        return self.vision_patches(width, height) // self.merge**2

    def vision_patches(self, width: int, height: int) -> int:
        """One for each patch."""
        columns, rows = (side // self.patch_px for side in self.processed_size(width, height))
        return columns * rows


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGrid:
    """Pixtral and Ministral 3: shrunk to a longest side, rounded up to whole tokens, each row ended by a token."""

    patch_px: int
    merge: int
    longest_px: int

    @property
    def side_step_px(self) -> int:
        """Side of the square that one token shows."""
        return self.patch_px * self.merge

    def processed_size(self, width: int, height: int) -> Size:
        """Shrink to the longest side, then round up to whole tokens."""
        step = self.side_step_px
        shrink = max(height / self.longest_px, width / self.longest_px)
        if shrink > 1:
            width, height = math.floor(width / shrink), math.floor(height / shrink)
        return ((width - 1) // step + 1) * step, ((height - 1) // step + 1) * step

    def image_tokens(self, width: int, height: int) -> int:
        """One token for each square, and one after each row."""
        columns, rows = (side // self.side_step_px for side in self.processed_size(width, height))
        return (columns + 1) * rows

    def vision_patches(self, width: int, height: int) -> int:
        """One for each patch."""
        columns, rows = (side // self.patch_px for side in self.processed_size(width, height))
        return columns * rows


@dataclass(frozen=True, kw_only=True, slots=True)
class StretchGrid:
    """Gemma 3: stretched to one size, always the same number of tokens; pan-and-scan adds crops of long pictures."""

    size_px: Size
    tokens: int
    """Tokens of one view."""
    patch_px: int
    pan_and_scan: bool = False
    """Whether the processor is called with `do_pan_and_scan=True`; its config alone does not turn it on."""
    min_crop_px: int = 256
    max_crops: int = 4
    min_ratio: float = 1.2

    @property
    def side_step_px(self) -> None:
        """No size that keeps the aspect ratio is left alone."""
        return None

    def processed_size(self, width: int, height: int) -> Size:
        """Always the same size, whatever the aspect ratio."""
        return self.size_px

    def count_crops(self, width: int, height: int) -> int:
        """Crops that pan-and-scan adds to the whole picture."""
        long, short = max(width, height), min(width, height)
        if not self.pan_and_scan or long / short < self.min_ratio:
            return 0
        crops = min(math.floor(long / self.min_crop_px), math.floor(long / short + 0.5))
        crops = min(self.max_crops, max(2, crops))
        return 0 if min(math.ceil(long / crops), short) < self.min_crop_px else crops

    def image_tokens(self, width: int, height: int) -> int:
        """The same for each view."""
        return self.tokens * (1 + self.count_crops(width, height))

    def vision_patches(self, width: int, height: int) -> int:
        """All patches of each view, before they are pooled."""
        patches = (self.size_px[0] // self.patch_px) * (self.size_px[1] // self.patch_px)
        return patches * (1 + self.count_crops(width, height))


@dataclass(frozen=True, kw_only=True, slots=True)
class TileGrid:
    """Llama 3.2 Vision: fitted into a canvas of square tiles, which the text sees by cross-attention."""

    tile_px: int
    max_tiles: int
    patch_px: int

    @property
    def side_step_px(self) -> int:
        """Any size is left alone that fits its canvas and has one side of at least a tile."""
        return 1

    def choose_canvas(self, width: int, height: int) -> Size:
        """Columns and rows of tiles: the least enlargement that fits, else the least shrinking; then fewest tiles."""
        shapes = [
            (rows, columns)
            for rows in range(1, self.max_tiles + 1)
            for columns in range(1, self.max_tiles + 1)
            if rows * columns <= self.max_tiles
        ]
        scales = [min(rows * self.tile_px / height, columns * self.tile_px / width) for rows, columns in shapes]
        chosen = min((scale for scale in scales if scale >= 1), default=max(scales))
        fitting = [shape for shape, scale in zip(shapes, scales, strict=True) if scale == chosen]
        rows, columns = min(fitting, key=lambda shape: shape[0] * shape[1])
        return columns, rows

    def processed_size(self, width: int, height: int) -> Size:
        """Shrink to the canvas, or enlarge until one side fills a tile; what remains of the canvas is padding."""
        columns, rows = self.choose_canvas(width, height)
        wide = min(max(width, self.tile_px), columns * self.tile_px)
        high = min(max(height, self.tile_px), rows * self.tile_px)
        scale_wide, scale_high = wide / width, high / height
        if scale_wide < scale_high:
            return wide, min(math.floor(height * scale_wide) or 1, high)
        return min(math.floor(width * scale_high) or 1, wide), high

    def image_tokens(self, width: int, height: int) -> int:
        """One: the pixels are reached by cross-attention, not through tokens."""
        return 1

    def vision_patches(self, width: int, height: int) -> int:
        """The patches and the class position of each tile that is used."""
        columns, rows = self.choose_canvas(width, height)
        return columns * rows * ((self.tile_px // self.patch_px) ** 2 + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropGrid:
    """LLaVA 1.5: the shorter side resized, then the centre cut out; always the same number of tokens."""

    crop_px: Size
    patch_px: int
    added_tokens: int
    """Tokens besides the patches': the class token where it is kept."""
    class_positions: int = 1

    @property
    def side_step_px(self) -> None:
        """No size that keeps the aspect ratio is left alone."""
        return None

    def processed_size(self, width: int, height: int) -> Size:
        """Always the same size; what lies outside the central square is lost."""
        return self.crop_px

    def image_tokens(self, width: int, height: int) -> int:
        """One token for each patch."""
        return (self.crop_px[0] // self.patch_px) * (self.crop_px[1] // self.patch_px) + self.added_tokens

    def vision_patches(self, width: int, height: int) -> int:
        """The patches and the class position."""
        return (self.crop_px[0] // self.patch_px) * (self.crop_px[1] // self.patch_px) + self.class_positions


@dataclass(frozen=True, kw_only=True, slots=True)
class PinpointGrid:
    """LLaVA 1.6: a base view, and the picture fitted into the best of a few sizes and cut into tiles."""

    pinpoints: tuple[Size, ...]
    """(height, width) in px, as in the processor's config."""
    tile_px: int
    patch_px: int
    added_tokens: int
    class_positions: int = 1

    @property
    def side_step_px(self) -> None:
        """The base view is resized whatever the size."""
        return None

    def choose_pinpoint(self, width: int, height: int) -> Size:
        """(width, height) that keeps most of the picture, and of those the one with the least padding."""
        best, best_rank = self.pinpoints[0], (0, -math.inf)
        for high, wide in self.pinpoints:
            scale = min(wide / width, high / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            rank = (kept, float(kept - wide * high))
            if kept > 0 and rank > best_rank:
                best, best_rank = (high, wide), rank
        return best[1], best[0]

    def processed_size(self, width: int, height: int) -> Size:
        """Size within the tiles, aspect kept; the base view is stretched to one tile besides."""
        wide, high = self.choose_pinpoint(width, height)
        if wide / width < high / height:
            return wide, min(math.ceil(height * (wide / width)), high)
        return min(math.ceil(width * (high / height)), wide), high

    def image_tokens(self, width: int, height: int) -> int:
        """Base view, patches of the tiles without padding, and a line break after each row of them."""
        side = self.tile_px // self.patch_px
        wide, high = self.choose_pinpoint(width, height)
        columns, rows = side * (wide // self.tile_px), side * (high // self.tile_px)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return columns * rows + rows + side * side + self.added_tokens

    def vision_patches(self, width: int, height: int) -> int:
        """The patches and the class position of the base view and of each tile."""
        wide, high = self.choose_pinpoint(width, height)
        tiles = 1 + (wide // self.tile_px) * (high // self.tile_px)
        return tiles * ((self.tile_px // self.patch_px) ** 2 + self.class_positions)
