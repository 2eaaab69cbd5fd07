"""Pictures that a worker process has prepared, for other rows that show the same bytes."""

from __future__ import annotations

from collections import OrderedDict

import xxhash

from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, PreparedImage, prepare_pages

__all__ = ["RememberedImages"]

# What an outcome takes beside its picture, problems too.
_ENTRY_BYTES = 1024


class RememberedImages:
    """Prepares images, and keeps those that were asked for last.

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
        if key in self._outcomes:
            self._outcomes.move_to_end(key)
            return content, self._outcomes[key]
        outcome = self._outcomes[key] = prepare_pages(data, config)
        self._bytes += _size_of(outcome)
        while self._bytes > self._limit_bytes and len(self._outcomes) > 1:
            _, oldest = self._outcomes.popitem(last=False)
            self._bytes -= _size_of(oldest)
        return content, outcome


def _size_of(outcome: list[PreparedImage] | ImageProblem) -> int:
    pages = [] if isinstance(outcome, ImageProblem) else outcome
    return _ENTRY_BYTES + sum(len(page.data) + len(page.thumbnail) for page in pages)
