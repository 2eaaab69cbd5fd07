"""Any mode of Pillow to upright 8-bit sRGB or grey: orientation, transparency, deep samples, colour profiles.

In two steps around the resampling: `to_plain_mode` before it gives one of `PLAIN_MODES`, which resample well, with
alpha put onto white, and `to_srgb` after it, on fewer pixels, applies the colour profile.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from vlmdata.config import ImageConfig
from vlmdata.images.outcome import ImageError

__all__ = ["PLAIN_MODES", "orient", "read_orientation", "to_plain_mode", "to_srgb"]

PLAIN_MODES = ("L", "RGB", "CMYK")

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INTEGER_RANGE = 65535.0
# A profile that moves no probe colour by more than this is sRGB, whatever it calls itself.
_SAME_COLOUR_LEVELS = 1


def read_orientation(image: Image.Image) -> tuple[int, str]:
    """The EXIF orientation, 1 to 8, and a note where the EXIF data cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:  # hostile EXIF raises nearly anything, and the picture does not depend on it
        return 1, f"EXIF data cannot be read ({error}), taken as upright"
    return (value if value in _TRANSPOSITIONS else 1), ""


def orient(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a viewer shows it."""
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def to_plain_mode(image: Image.Image, config: ImageConfig) -> tuple[Image.Image, str | None]:
    """The image in one of `PLAIN_MODES`, and the window of values where samples were deeper than 8 bits.

    Raises:
        ImageError: A mode that Pillow opens but cannot convert.
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _apply_window(image, config)
    if "transparency" in image.info and mode in ("1", "L", "RGB", "P"):
        return _flatten(image.convert("RGBA")), None
    if mode in PLAIN_MODES:
        return image, None
    if mode in ("RGBA", "LA"):
        return _flatten(image), None
    if mode == "1":
        return image.convert("L"), None
    if mode in ("P", "PA", "RGBa", "La"):
        if mode == "P" and not image.has_transparency_data:
            return image.convert("RGB"), None
        return _flatten(image.convert("LA" if mode == "La" else "RGBA")), None
    if mode == "LAB":
        return _apply_transform(image, _lab_to_srgb()), None
    if mode in ("YCbCr", "HSV", "RGBX"):
        return image.convert("RGB"), None
    raise ImageError("image_unsupported", f"pixel mode {mode!r}")


def to_srgb(image: Image.Image, icc_profile: bytes | None) -> tuple[Image.Image, str]:
    """An image of one of `PLAIN_MODES` as RGB or L, and a note where its profile could not be used."""
    note = ""
    if icc_profile:
        try:
            transform = profile_transform(icc_profile, image.mode)
            if transform is not None:
                grey = image.mode == "L"
                image = _apply_transform(image, transform)
                image = image.convert("L") if grey else image
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            note = f"colour profile not used ({error})"
    return (image.convert("RGB") if image.mode == "CMYK" else image), note


@functools.lru_cache(maxsize=32)
def profile_transform(icc_profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB, or None where the profile is sRGB itself.

    Raises:
        ImageCms.PyCMSError: The profile is broken or is for another kind of pixels than `mode`.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
    transform = ImageCms.buildTransform(
        profile,
        _srgb_profile(),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    probe = _probe_colours() if mode == "RGB" else _probe_colours().getchannel(0)
    seen = np.asarray(_apply_transform(probe, transform), dtype=np.int16)
    wanted = np.asarray(probe.convert("RGB"), dtype=np.int16)
    return None if np.abs(seen - wanted).max() <= _SAME_COLOUR_LEVELS else transform


@functools.cache
def _srgb_profile() -> Any:
    return ImageCms.createProfile("sRGB")


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb_profile(), "LAB", "RGB")


@functools.cache
def _probe_colours() -> Image.Image:
    """A grey ramp and a lattice of the colour cube."""
    levels = np.linspace(0, 255, 6).round()
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    ramp = np.repeat(np.arange(0, 256, 5)[:, None], 3, axis=1)
    return Image.fromarray(np.concatenate([ramp, lattice]).astype(np.uint8)[None])


def _apply_transform(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None comes back only from conversions in place
    return converted


def _flatten(image: Image.Image) -> Image.Image:
    """An RGBA or LA image on white."""
    alpha = image.getchannel("A")
    opaque = image.convert(image.mode[:-1])
    if alpha.getextrema() == (255, 255):
        return opaque
    return Image.composite(opaque, Image.new(opaque.mode, opaque.size, "white"), alpha)


def _apply_window(image: Image.Image, config: ImageConfig) -> tuple[Image.Image, str]:
    """A deep grey image scaled linearly to 8 bits; nothing is clipped unless bounds were given."""
    samples = np.asarray(image, dtype=np.float64)
    finite = np.isfinite(samples)
    integer = image.mode != "F"
    nominal = (0.0, _INTEGER_RANGE) if integer else (0.0, 1.0)
    if config.window_bounds is not None:
        low, high = config.window_bounds
    elif not finite.any():
        low, high = nominal
    else:
        used = samples if finite.all() else samples[finite]
        low, high = float(used.min()), float(used.max())
        if config.window == "full" or low == high:
            # A constant picture has no range of its own; values beyond the nominal one widen it.
            low, high = min(low, nominal[0]), max(high, nominal[1])
    return Image.fromarray(_scale_to_bytes(samples, low, high)), f"{low:g}:{high:g}"


def _scale_to_bytes(samples: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    # Not-a-number becomes black, infinities the ends of the window. Halving first keeps huge ranges finite.
    with np.errstate(invalid="ignore", over="ignore"):
        share = (samples / 2 - low / 2) / (high / 2 - low / 2)
    share = np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0).clip(0.0, 1.0)
    return (share * 255.0).round().astype(np.uint8)
