"""The size to store a picture in so that a family's processor leaves it alone."""

from __future__ import annotations

import math

from vlmdata.families.grids import ImageGrid, Size

__all__ = ["fixed_point_size"]


def fixed_point_size(
    grid: ImageGrid, width: int, height: int, *, max_side: int, min_side: int, max_upscale: float = 4.0
) -> Size | None:
    """Return the size to store a picture in so that the processor leaves it alone.

    The aspect ratio is kept up to rounding to `side_step_px`. Where both bounds cannot be met the upper one wins.

    Args:
        grid: The processor's numbers.
        width: Of the original picture, in px.
        height: The same.
        max_side: Longest side allowed, in px.
        min_side: Shorter side below which a picture is enlarged, in px.
        max_upscale: How many times it may be enlarged for that; what the processor would enlarge it to is not limited.

    Returns:
        (width, height), or None where no size within `max_side` is left alone.

    Raises:
        ValueError: The processor refuses the picture for its aspect ratio.
    """
    step = grid.side_step_px
    if step is None or max_side < step:
        return None
    short, long = sorted((width, height))
    scale = min(1.0, max_side / long)
    if short < min_side:
        scale = min(min_side / short, max_side / long, max_upscale)
    # Rounded up, so that a permitted strip does not become one that Qwen's processor refuses.
    wanted = (_round_up(width * scale, max_side), _round_up(height * scale, max_side))
    # The processor's own choice distorts least; it may lie above the longest side, or below the shortest.
    choices = (grid.processed_size(*wanted), _snap(wanted, step, min_side, max_side))
    settled = [
        size
        for choice in choices
        for size in (choice, grid.processed_size(*choice))
        if max(size) <= max_side and grid.processed_size(*size) == size and _keeps_aspect(size, wanted, step)
    ]
    above_floor = [size for size in settled if min(size) >= min_side]
    return next(iter(above_floor or settled), None)


def _round_up(length: float, limit: int) -> int:
    # The margin keeps 1000.0000000001 from becoming 1001.
    return min(math.ceil(length - 1e-6), limit)


def _snap(size: Size, step: int, min_side: int, max_side: int) -> Size:
    """Round to multiples of `step`, not below `min_side` where the side is not, and never above `max_side`."""
    sides = []
    for side in size:
        nearest = max(math.floor(side / step + 0.5) * step, step)
        if side >= min_side > nearest:
            nearest += step
        sides.append(min(nearest, max_side // step * step))
    return sides[0], sides[1]


def _keeps_aspect(size: Size, wanted: Size, step: int) -> bool:
    """Whether both sides lie within a step of `wanted` at one scale: enlarging a rounded strip can leave it far off."""
    return abs(size[0] * wanted[1] - size[1] * wanted[0]) <= step * (wanted[0] + wanted[1])
