"""What decoders say while they work: Python warnings, and lines that C libraries print to stderr."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO, Any, cast

from PIL import Image, ImageFile

__all__ = ["decoder_session", "one_line"]

MAX_CHATTER_BYTES = 4096
# About Pillow's code, not about the file.
_OWN_WARNINGS = (ResourceWarning, DeprecationWarning)


@functools.cache
def _sink(pid: int) -> IO[bytes]:
    """A file to catch this process's stderr in; after a fork the child needs its own."""
    file = tempfile.TemporaryFile(buffering=0)
    atexit.register(file.close)
    return file


@contextlib.contextmanager
def decoder_session(said: list[str], *, max_pixels: int, salvage_truncated: bool) -> Iterator[None]:
    """Pillow's global settings made for one image, and everything that decoders say caught.

    File descriptor 2 points elsewhere meanwhile, so run it in worker processes or where no other thread writes to
    stderr.

    Args:
        said: Takes the lines that were said, also when an exception passes.
        max_pixels: Above it a picture is taken for a decompression bomb.
        salvage_truncated: Whether a file that ends too early gives what there is of it.
    """
    sink = _sink(os.getpid())
    stderr_copy = os.dup(2)
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    core = cast(Any, Image).core
    in_one_piece = core.get_use_block_allocator()
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, salvage_truncated
    # Large pictures too stand in one piece of memory, which other libraries can read without a copy.
    core.set_use_block_allocator(1)
    os.dup2(sink.fileno(), 2)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limits
        core.set_use_block_allocator(in_one_piece)
        said.extend(str(warning.message) for warning in caught if not issubclass(warning.category, _OWN_WARNINGS))
        if printed := sink.tell():
            sink.seek(0)
            said.extend(sink.read(min(printed, MAX_CHATTER_BYTES)).decode(errors="replace").splitlines())
            sink.seek(0)
            sink.truncate()


def one_line(*texts: str, limit: int = 400) -> str:
    """The texts joined, each once, and cut to one line without control characters."""
    if not any(texts):
        return ""
    joined = "; ".join(text for text in dict.fromkeys(" ".join(t.split()) for t in texts) if text)
    printable = "".join(c if c.isprintable() else "?" for c in joined)
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"
