"""Files that hold more than one picture: animations, of which the first frame counts, and pages."""

from __future__ import annotations

from PIL import Image

from vlmdata.config import ImageConfig
from vlmdata.images.outcome import ImageError

__all__ = ["check_pages", "frame_used", "list_pages"]

_PAGED_FORMATS = ("TIFF", "DCX")
_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF", "FLI", "MPO")
_NEW_SUBFILE_TYPE = 254
_REDUCED_COPY = 1


def check_pages(image: Image.Image, config: ImageConfig) -> None:
    """Refuse a file of several pages where the config does. Leaves the image at its first frame.

    Raises:
        ImageError: More than one page.
    """
    if config.pages == "first":
        return
    pages = list_pages(image)
    if len(pages) > 1:
        raise ImageError("multi_page", f"{image.format} of {len(pages)} pages (see --pages)")


def list_pages(image: Image.Image, limit: int | None = None) -> list[int]:
    """Return the frame numbers of the pages of a file; smaller copies of a page, as in pyramids, are none.

    Leaves the image at its first frame.

    Args:
        image: As it was opened.
        limit: Pages that are enough; more are not looked for.
    """
    frames = getattr(image, "n_frames", 1) if image.format in _PAGED_FORMATS else 1
    pages = [0]
    for frame in range(1, frames):
        if limit is not None and len(pages) >= limit:
            break
        image.seek(frame)
        kind = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) if hasattr(image, "tag_v2") else 0
        if not (isinstance(kind, int) and kind & _REDUCED_COPY):
            pages.append(frame)
    if frames > 1:
        image.seek(0)
    return pages


def frame_used(image: Image.Image) -> int | None:
    """0 for the first frame of an animation (or of a stereo pair), None for a still picture."""
    if image.format not in _ANIMATED_FORMATS:
        return None
    try:
        return 0 if getattr(image, "is_animated", False) else None
    except Exception:  # a broken list of further frames raises nearly anything, and the first is whole without it
        return None
