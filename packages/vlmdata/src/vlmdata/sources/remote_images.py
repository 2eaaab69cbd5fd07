"""Images under a remote root, such as `s3://bucket/images`: the same rules as for local paths, over fsspec."""

from __future__ import annotations

import posixpath
from pathlib import Path

from vlmdata.errors import ResourceError
from vlmdata.locations import explain_remote_errors, locator, open_location, version_of
from vlmdata.sample import Problem
from vlmdata.sources.stamps import FileStamp

__all__ = ["RemoteRoot"]


class RemoteRoot:
    """Reads files by names relative to a URL. Safe to use from several threads.

    Args:
        root: the URL.
        allow_outside: let names lead out of the root, within its file system.
        max_bytes: larger files are not read.
    """

    def __init__(self, root: Path, *, allow_outside: bool, max_bytes: int) -> None:
        opened = open_location(root)
        self._url = locator(root)
        self._scheme = self._url.partition("://")[0] + "://"
        self._system = opened.fs  # type: ignore[attr-defined]  # a UPath
        self._allow_outside = allow_outside
        self._max_bytes = max_bytes

    def has_scheme_of(self, location: str) -> bool:
        """Tell whether a location is a URL of the same file system."""
        return location[: len(self._scheme)].lower() == self._scheme

    def read(self, location: str) -> tuple[bytes | Problem, str, FileStamp | None]:
        """Return the bytes of a file or why they cannot be had, its name, and its stamp where it was looked for.

        Raises:
            ResourceError: the network or the credentials give out; it is not the fault of the file.
        """
        url, name = self._resolve(location)
        if url is None:
            problem = "leads out of the image root (--allow-outside-root)"
            return Problem("image_outside_root", f"{location[:200]!r} {problem}"), name, None
        try:
            with explain_remote_errors(url):
                info = self._system.info(url)
                size = int(info["size"] or 0)
                stamp = FileStamp(url, size, version_of(info))
                if info["type"] == "directory":
                    return Problem("image_unreadable", f"{location[:200]!r} is not a file"), name, stamp
                if size > self._max_bytes:
                    detail = f"{size} bytes, more than {self._max_bytes}"
                    return Problem("image_too_large_bytes", detail), name, stamp
                return self._system.cat_file(url), name, stamp
        except (FileNotFoundError, NotADirectoryError):
            problem = f"no file {location[:200]!r} under the image root"
            return Problem("image_missing", problem), name, FileStamp(url, -1, 0)
        except ValueError as error:
            return Problem("image_unreadable", f"{location[:200]!r}: {error}"), name, None
        except ResourceError as error:
            if isinstance(error.__cause__, PermissionError) or _is_bad_name(error.__cause__):
                return Problem("image_unreadable", f"{location[:200]!r}: {error.__cause__}"), name, None
            raise

    def _resolve(self, location: str) -> tuple[str | None, str]:
        """The URL that a location means, None where it leads out of the root, and its name."""
        path = location[len(self._scheme) :] if self.has_scheme_of(location) else None
        root = self._url[len(self._scheme) :]
        full = posixpath.normpath(posixpath.join("/", root, location) if path is None else posixpath.join("/", path))
        inside = full.startswith(posixpath.join("/", root).rstrip("/") + "/")
        # names are keys, never patterns or chains of URLs
        if "\0" in location or "::" in location or not (inside or self._allow_outside):
            return None, posixpath.basename(location)
        name = posixpath.relpath(full, posixpath.join("/", root)) if inside else posixpath.basename(full)
        return self._scheme + full[1:], name


def _is_bad_name(cause: BaseException | None) -> bool:
    """Tell whether a store refused the name itself (too long, not valid)."""
    return isinstance(cause, OSError) and cause.errno in (22, 36)
