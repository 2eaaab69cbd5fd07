"""From an image as a row names it (path, bytes, data URI, base64, URL) to the bytes of its file."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote_to_bytes

from vlmdata.config import InputConfig
from vlmdata.locations import is_remote, open_location
from vlmdata.sample import ImageRef, Problem
from vlmdata.sources.downloads import Downloader
from vlmdata.sources.remote_images import RemoteRoot
from vlmdata.sources.stamps import FileStamp

__all__ = ["ImageLoader", "LoadedImage", "is_url"]

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
# How base64 of JPEG, PNG, GIF and RIFF (WebP) files begins; a path that long does not.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
_BASE64_MIN_CHARS = 256


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An encoded image file, the name it goes by in the shard, and the path of the local file it was read from."""

    data: bytes
    name: str | None
    file: str | None = None


def _as_utf8(name: str) -> str:
    """A name with `?` for bytes that are no UTF-8, and for half characters."""
    return name.encode("utf-8", "replace").decode()


def _refuse_encoding(location: str) -> Problem:
    """A name that could not be written down: not in a shard, nor among the stamps that the next build looks at."""
    return Problem("bad_encoding", f"the name {location[:200]!r} is not UTF-8; rename the file or its folder")


def is_url(location: str) -> bool:
    """Tell whether a location is fetched over the network."""
    return location[:8].lower().startswith(("http://", "https://"))


class ImageLoader:
    """Reads the images of one input, and keeps stamps of all files it was asked for.

    Args:
        config: where images may lie.
        image_base: where relative paths start, unless the config names an image root.
        max_image_bytes: larger files are not read.
    """

    def __init__(self, config: InputConfig, image_base: Path, max_image_bytes: int) -> None:
        root = config.image_root or image_base
        self._remote_base = root if is_remote(root) else None
        self._root = "" if is_remote(root) else os.path.realpath(root)
        self._allow_outside = config.allow_outside_root
        self._download = config.download
        self._max_bytes = max_image_bytes
        self.stamps: dict[str, FileStamp] = {}
        self._real_folders: dict[str, str] = {}
        self._downloader = Downloader(
            timeout_s=config.url_timeout_s,
            retries=config.url_retries,
            allow_private=config.allow_private_urls,
            max_bytes=max_image_bytes,
        )

    @cached_property
    def _remote(self) -> RemoteRoot | None:
        # not before it is needed, since rows may carry their images
        if self._remote_base is None:
            return None
        root = open_location(self._remote_base)
        return RemoteRoot(root, allow_outside=self._allow_outside, max_bytes=self._max_bytes)

    def has_to_wait(self, reference: ImageRef) -> bool:
        """Tell whether the bytes come over the network, so that it is worth to ask for several at once."""
        location = reference.location
        if reference.data is not None or not location or location.startswith("data:"):
            return False
        # the file system is opened here and not by one of the threads that wait: each would open its own
        return is_url(location) or self._remote is not None

    def load(self, reference: ImageRef) -> LoadedImage | Problem:
        """Return the bytes of an image, or why they cannot be had."""
        location = reference.location
        if reference.data is not None:
            return LoadedImage(reference.data, _as_utf8(os.path.basename(location)) if location else None)
        if not location:
            return Problem("image_missing", "neither a path nor bytes")
        if _as_utf8(location) != location:
            return _refuse_encoding(location)
        if location.startswith("data:"):
            return self._decode_data_uri(location)
        if location.startswith(_BASE64_STARTS) and len(location) >= _BASE64_MIN_CHARS:
            return self._decode_base64(location)
        if is_url(location) and not self._download:
            return Problem("image_not_downloaded", f"{location[:200]!r} is behind a URL (--no-download)")
        if is_url(location):
            body = self._downloader.fetch(location)
            return body if isinstance(body, Problem) else LoadedImage(body, location.partition("?")[0])
        if self._remote is not None and (self._remote.has_scheme_of(location) or not _SCHEME.match(location)):
            return self._read_remote(self._remote, location)
        if scheme := _SCHEME.match(location):
            return Problem("image_url_refused", f"{scheme[1]}:// is not read, only paths, http:// and https://")
        return self._read_path(location)

    def _read_remote(self, root: RemoteRoot, location: str) -> LoadedImage | Problem:
        data, name, stamp = root.read(location)
        if stamp is not None:
            self.stamps[stamp.path] = stamp
        return data if isinstance(data, Problem) else LoadedImage(data, name)

    def _read_path(self, location: str) -> LoadedImage | Problem:
        if "\0" in location:
            return Problem("image_missing", f"not a path: {location[:100]!r}")
        real = self._resolve(location)
        if _as_utf8(real) != real:
            return _refuse_encoding(real)
        inside_of = self._root.rstrip(os.sep) + os.sep
        inside = real.startswith(inside_of)
        if not inside and not self._allow_outside:
            return Problem(
                "image_outside_root", f"{location[:200]!r} leads out of the image root (--allow-outside-root)"
            )
        try:
            status = os.stat(real)
            self.stamps[real] = FileStamp(real, status.st_size, status.st_mtime_ns)
            if not stat.S_ISREG(status.st_mode):
                return Problem("image_unreadable", f"{location[:200]!r} is not a regular file")
            if status.st_size > self._max_bytes:
                return Problem("image_too_large_bytes", f"{status.st_size} bytes, more than {self._max_bytes}")
            with open(real, "rb", buffering=0) as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            self.stamps[real] = FileStamp(real, -1, 0)
            return Problem("image_missing", f"no file {location[:200]!r} under the image root")
        except OSError as error:
            return Problem("image_unreadable", f"{location[:200]!r}: {error.strerror}")
        return LoadedImage(data, real[len(inside_of) :] if inside else os.path.basename(real), real)

    def _resolve(self, location: str) -> str:
        """The real path of a file; that of its folder, which many files share, is looked up once."""
        folder, name = os.path.split(os.path.join(self._root, location))
        if name in ("", ".", ".."):
            return os.path.realpath(os.path.join(folder, name))
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        path = os.path.join(self._real_folders[folder], name)
        return os.path.realpath(path) if os.path.islink(path) else path

    def _decode_data_uri(self, location: str) -> LoadedImage | Problem:
        header, comma, payload = location.partition(",")
        if not comma:
            return Problem("image_bad_data_uri", f"no comma after {header[:60]!r}")
        if header.endswith(";base64"):
            return self._decode_base64(payload)
        return LoadedImage(unquote_to_bytes(payload), None)

    def _decode_base64(self, text: str) -> LoadedImage | Problem:
        if len(text) // 4 * 3 > self._max_bytes:
            return Problem("image_too_large_bytes", f"more than {self._max_bytes} bytes")
        try:
            return LoadedImage(base64.b64decode("".join(text.split()), validate=True), None)
        except (binascii.Error, ValueError) as error:
            return Problem("image_bad_data_uri", f"not base64: {error}")
