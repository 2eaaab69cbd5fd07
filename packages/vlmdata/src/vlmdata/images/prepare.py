"""One encoded file in, one picture to store out, and the boundary that no bad file crosses."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal, TypeVar

from PIL import Image

from vlmdata.config import ImageConfig
from vlmdata.images.chatter import decoder_session, one_line
from vlmdata.images.containers import strip_metadata
from vlmdata.images.decoding import Decoded, decode
from vlmdata.images.encoding import encode
from vlmdata.images.fingerprint import fingerprint, hash_pixels
from vlmdata.images.frames import list_pages
from vlmdata.images.geometry import Layout
from vlmdata.images.outcome import ImageProblem, PreparedImage
from vlmdata.images.refusal import explain
from vlmdata.images.unchanged import Unchanged, read_unchanged

__all__ = ["prepare_image", "prepare_pages"]

Action = Literal["stored", "stripped", "resized", "reencoded"]
StoredFormat = Literal["JPEG", "PNG", "WEBP"]
_Result = TypeVar("_Result")

_STORED_AS: dict[str, StoredFormat] = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP"}


def prepare_image(data: bytes, config: ImageConfig) -> PreparedImage | ImageProblem:
    """Decode an image file once and make of it what the config wants.

    File descriptor 2 and Pillow's global limits are changed meanwhile (see `decoder_session`): for worker processes.

    Args:
        data: An encoded image file, of any format that Pillow reads.
        config: Bounds, sizes and policies.

    Returns:
        The picture to store, or the reason why there is none; never an exception for bad data.
    """
    if problem := _check_bytes(data, config):
        return problem
    return _salvage(data, config, None)


def prepare_pages(data: bytes, config: ImageConfig) -> list[PreparedImage] | ImageProblem:
    """Make of an image file what the config wants: one picture, or one for each page where all pages are wanted.

    Args:
        data: An encoded image file.
        config: Bounds, sizes and policies.

    Returns:
        The pictures to store, in the order of the pages; or the reason why there are none, which may be that of any
        one page.
    """
    if config.pages != "all" or _check_bytes(data, config) is not None:
        outcome = prepare_image(data, config)
        return outcome if isinstance(outcome, ImageProblem) else [outcome]
    frames = _find_pages(data, config)
    if isinstance(frames, ImageProblem):
        return frames
    if len(frames) > config.max_pages:
        return ImageProblem("too_many_pages", f"more than max_pages {config.max_pages}")
    pages = []
    for number, frame in enumerate(frames, 1):
        page = _salvage(data, config, frame if len(frames) > 1 else None)
        if isinstance(page, ImageProblem):
            where = f"page {number} of {len(frames)}: " if len(frames) > 1 else ""
            return ImageProblem(page.reason, where + page.detail)
        pages.append(page)
    return pages


def _check_bytes(data: bytes, config: ImageConfig) -> ImageProblem | None:
    if len(data) > config.max_image_bytes:
        return ImageProblem("image_too_large_bytes", f"{len(data)} bytes, more than {config.max_image_bytes}")
    return None if data else ImageProblem("image_unreadable", "the file is empty")


def _find_pages(data: bytes, config: ImageConfig) -> list[int] | ImageProblem:
    def find() -> list[int]:
        return list_pages(Image.open(io.BytesIO(data)), config.max_pages + 1)

    found = _attempt(find, data, config, salvage=False)
    return found if isinstance(found, ImageProblem) else found[0]


def _salvage(data: bytes, config: ImageConfig, page: int | None) -> PreparedImage | ImageProblem:
    """Prepare a picture; one that ends too early once more, for what there is of it, where the config wants that."""
    outcome = _prepare(data, config, page, salvage=False)
    if isinstance(outcome, ImageProblem) and outcome.reason == "image_truncated" and config.salvage_truncated:
        return _prepare(data, config, page, salvage=True)
    return outcome


def _prepare(data: bytes, config: ImageConfig, page: int | None, *, salvage: bool) -> PreparedImage | ImageProblem:
    unchanged = read_unchanged(data, config) if page is None and not salvage else None
    if unchanged is not None:
        return _keep_file(data, unchanged)
    outcome = _attempt(lambda: _make_picture(data, config, page, salvage=salvage), data, config, salvage=salvage)
    if isinstance(outcome, ImageProblem):
        return outcome
    prepared, said = outcome
    prepared.note = one_line(prepared.note, *said)
    return prepared


def _attempt(
    work: Callable[[], _Result], data: bytes, config: ImageConfig, *, salvage: bool
) -> tuple[_Result, list[str]] | ImageProblem:
    """What comes of some work on a file in a decoder session, and what decoders said; or why there is nothing."""
    said: list[str] = []
    try:
        with decoder_session(said, max_pixels=config.max_pixels, salvage_truncated=salvage):
            result = work()
    # Hostile files make decoders raise nearly anything (OSError, ValueError, TypeError, struct.error, SyntaxError,
    # RecursionError, MemoryError, ...); here, and only here, each of them becomes the reason why there is no picture.
    except Exception as error:
        reason, detail = explain(error, data, said, config.max_pixels)
        return ImageProblem(reason, one_line(detail, *said))
    return result, said


def _make_picture(data: bytes, config: ImageConfig, page: int | None, *, salvage: bool) -> PreparedImage:
    decoded = decode(data, config, page)
    # Nothing more is needed of what the file says beside its pixels, and every step would copy it.
    decoded.picture.info = {}
    picture = _place(decoded.picture, decoded.layout)
    stored, stored_format, action = _to_file(data, decoded, picture, config, salvage=salvage)
    # The whole picture identifies an image, not what margins or cut edges leave of it.
    signals = fingerprint(decoded.picture)
    return PreparedImage(
        data=stored,
        format=stored_format,
        width=picture.width,
        height=picture.height,
        original_width=decoded.original[0],
        original_height=decoded.original[1],
        action=action,
        content_box=(*decoded.layout.offset, *decoded.layout.scaled),
        window=decoded.window,
        frame=decoded.frame,
        salvaged=salvage,
        note=decoded.note,
        pixel_hash=hash_pixels(picture),
        phash=signals.phash,
        thumbnail=signals.thumbnail,
        is_flat=signals.is_flat,
    )


def _keep_file(data: bytes, unchanged: Unchanged) -> PreparedImage:
    width, height = unchanged.size
    return PreparedImage(
        data=unchanged.data,
        format="JPEG",
        width=width,
        height=height,
        original_width=width,
        original_height=height,
        action="stored" if unchanged.data is data else "stripped",
        content_box=(0, 0, width, height),
        window=None,
        frame=None,
        salvaged=False,
        note=unchanged.note,
        pixel_hash=unchanged.pixel_hash,
        phash=unchanged.signals.phash,
        thumbnail=unchanged.signals.thumbnail,
        is_flat=False,
    )


def _to_file(
    data: bytes, decoded: Decoded, picture: Image.Image, config: ImageConfig, *, salvage: bool
) -> tuple[bytes, StoredFormat, Action]:
    """The file itself, without metadata, where it holds the picture as it is; else the picture encoded anew."""
    same_size = decoded.layout.scaled == decoded.layout.stored == decoded.original
    if decoded.is_as_filed and same_size and not salvage:
        stripped = strip_metadata(data, decoded.file_format)
        if stripped is not None:
            return stripped, _STORED_AS[decoded.file_format], "stored" if stripped is data else "stripped"
    encoded, encoded_format = encode(picture, lossy_source=decoded.lossy_source, jpeg_quality=config.jpeg_quality)
    return encoded, encoded_format, "reencoded" if same_size else "resized"


def _place(picture: Image.Image, layout: Layout) -> Image.Image:
    """The scaled picture between white margins, or without the edges that the stored size leaves no room for."""
    if layout.scaled == layout.stored:
        return picture
    placed = Image.new(picture.mode, layout.stored, "white")
    placed.paste(picture, layout.offset)
    return placed
