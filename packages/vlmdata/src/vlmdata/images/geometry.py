"""The stored size of an image, worked out from its original size alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmdata.config import ImageConfig
from vlmdata.images.outcome import ImageError

__all__ = ["Layout", "check_size", "plan_layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an original picture goes.

    Attributes:
        scaled: (width, height) in px of the whole picture after resampling.
        stored: (width, height) in px of the stored image; differs from `scaled` by margins or cut edges.
        offset: (left, top) in px of the scaled picture within the stored one, negative where edges are cut.
        note: what could not be had, empty if nothing.
    """

    scaled: tuple[int, int]
    stored: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    note: str = ""


def check_size(width: int, height: int, config: ImageConfig) -> None:
    """Refuse sizes that no layout helps.

    Raises:
        ImageError: Too many pixels, too small, or too long and thin.
    """
    if width * height > config.max_pixels:
        raise ImageError("image_bomb", f"{width}x{height} px, more than max_pixels {config.max_pixels}")
    short, long = sorted((width, height))
    if short == 0:
        return  # a header without a size: loading tells what is wrong with the file
    if short < config.smallest_side:
        raise ImageError(
            "image_too_small", f"{width}x{height} px, a side is below smallest_side {config.smallest_side}"
        )
    if long > config.max_aspect_ratio * short:
        raise ImageError("image_aspect", f"{width}x{height} px, longer than {config.max_aspect_ratio:g} to 1")


def plan_layout(width: int, height: int, config: ImageConfig) -> Layout:
    """Choose the size that an upright image of `width` x `height` px is stored in.

    The aspect ratio is kept up to rounding. Where both bounds cannot be met, the upper one wins.

    Raises:
        ImageError: The image is small, or too long and thin for both bounds, and such ones are to be rejected; or the
            processor of `for_` would refuse it.
    """
    if config.size_px is not None:
        return _exact_layout(width, height, config.size_px, config.fit)
    short, long = sorted((width, height))
    scale = min(1.0, config.max_side / long)
    if short < config.min_side and config.small == "reject":
        raise ImageError("image_too_small", f"{width}x{height} px, a side is below min_side {config.min_side}")
    enlarged = short < config.min_side and config.small == "upscale"
    if enlarged or long > config.max_side:
        _check_strip(short, long, config)
    if enlarged:
        scale = min(config.min_side / short, config.max_side / long, config.max_upscale)
    try:
        size = config.fixed_point(width, height)
    except ValueError as error:
        raise ImageError("image_aspect", f"the processor of --for {config.for_} refuses it: {error}") from error
    note = ""
    if size is None:
        size = _scaled(width, height, scale, config)
        if config.expects_fixed_points:
            note = f"no size within the bounds is left alone by the processor of {config.for_}"
    return Layout(scaled=size, stored=size, note=note)


def _check_strip(short: int, long: int, config: ImageConfig) -> None:
    if config.strips == "reject" and short * config.max_side < config.min_side * long:
        bounds = f"min_side {config.min_side} and max_side {config.max_side}"
        raise ImageError("image_strip", f"{long} to {short} px, too long and thin for both {bounds}")


def _scaled(width: int, height: int, scale: float, config: ImageConfig) -> tuple[int, int]:
    step = config.multiple_of
    long_limit = config.max_side // step * step
    long = max(_nearest(max(width, height) * scale, step), step)
    if long > long_limit:
        # the other side follows, or what the limit takes from this one would change the aspect ratio
        long, scale = long_limit, long_limit / max(width, height)
    # Rounding down must not turn a permitted strip into one that processors refuse.
    thinnest = math.ceil(long / config.max_aspect_ratio / step) * step
    short = min(max(_nearest(min(width, height) * scale, step), thinnest, step), long_limit)
    return (long, short) if width >= height else (short, long)


def _nearest(length: float, step: int) -> int:
    return math.floor(length / step + 0.5) * step


def _exact_layout(width: int, height: int, size: tuple[int, int], fit: str) -> Layout:
    if fit == "stretch":
        return Layout(scaled=size, stored=size)
    ratios = (size[0] / width, size[1] / height)
    scale = min(ratios) if fit == "pad" else max(ratios)
    lengths = [max(1, math.floor(side * scale + 0.5)) for side in (width, height)]
    # The side that decided the scale fits exactly, whatever the rounding of floats says.
    lengths[ratios.index(scale)] = size[ratios.index(scale)]
    offset = tuple((outer - inner) // 2 for outer, inner in zip(size, lengths, strict=True))
    return Layout(scaled=(lengths[0], lengths[1]), stored=size, offset=(offset[0], offset[1]))
