"""Pictures that a worker process has prepared, for other rows that show the same bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import xxhash

from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, PreparedImage, prepare_pages
from vlmdata.images.containers import strip_metadata

__all__ = ["RememberedImages"]

# What an outcome takes beside its picture, problems too.
_ENTRY_BYTES = 1024


class RememberedImages:
    """Prepares images, and keeps those that were asked for last.

    Of a picture that is stored as it came all but its bytes is kept: whoever asks for it again brings them. So the
    memory that files are read into is soon free for the next ones, which then stay in the processor's cache.

    Args:
        limit_bytes: of encoded pictures and their small copies that are kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._outcomes: OrderedDict[tuple[str, ImageConfig], list[PreparedImage] | ImageProblem] = OrderedDict()

    def prepare(self, data: bytes, config: ImageConfig) -> tuple[str, list[PreparedImage] | ImageProblem]:
        """Return a hash of the bytes, and what `prepare_pages` makes of them."""
        content = xxhash.xxh3_128_hexdigest(data)
        key = content, config
        known = self._outcomes.get(key)
        if known is not None:
            self._outcomes.move_to_end(key)
            return content, _with_bytes(known, data)
        outcome = prepare_pages(data, config)
        kept = self._outcomes[key] = _without_bytes(outcome)
        self._bytes += _size_of(kept)
        while self._bytes > self._limit_bytes and len(self._outcomes) > 1:
            _, oldest = self._outcomes.popitem(last=False)
            self._bytes -= _size_of(oldest)
        return content, outcome


def _is_unchanged(outcome: list[PreparedImage] | ImageProblem) -> bool:
    return not isinstance(outcome, ImageProblem) and len(outcome) == 1 and outcome[0].action in ("stored", "stripped")


def _without_bytes(outcome: list[PreparedImage] | ImageProblem) -> list[PreparedImage] | ImageProblem:
    if isinstance(outcome, ImageProblem) or not _is_unchanged(outcome):
        return outcome
    return [replace(outcome[0], data=b"")]


def _with_bytes(known: list[PreparedImage] | ImageProblem, data: bytes) -> list[PreparedImage] | ImageProblem:
    if isinstance(known, ImageProblem) or not _is_unchanged(known):
        return known
    image = known[0]
    stripped = strip_metadata(data, image.format)
    assert stripped is not None
    return [replace(image, data=stripped)]


def _size_of(outcome: list[PreparedImage] | ImageProblem) -> int:
    pages = [] if isinstance(outcome, ImageProblem) else outcome
    return _ENTRY_BYTES + sum(len(page.data) + len(page.thumbnail) for page in pages)
