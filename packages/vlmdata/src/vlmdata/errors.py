"""The exceptions of both programs.

    ToolkitError                     base class: one line on stderr, never a traceback
    ├── ConfigError             (2)  wrong option, column, template or config key
    ├── DataError               (3)  the data cannot be used: no rows, too many rejects, a broken shard
    ├── MissingDependencyError  (4)  a missing extra, package or GPU: the message names what to install
    └── ResourceError           (5)  disk, network or memory

The number is the exit code. A bad *row* is never an exception: it is a `Rejection` and a line in rejected.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ConfigError", "DataError", "MissingDependencyError", "ResourceError", "ToolkitError"]


class ToolkitError(Exception):
    """Base class of every error that the command line reports in one line."""

    exit_code = 1


class ConfigError(ToolkitError):
    """Options, a config file or a template are wrong; every problem found is listed at once."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("; ".join(self.problems))


class DataError(ToolkitError):
    """The data cannot be used: nothing left to keep, too many rejects, a folder that is not whole."""

    exit_code = 3


class MissingDependencyError(ToolkitError):
    """A package, extra or GPU is missing; the message names the command that installs it."""

    exit_code = 4


class ResourceError(ToolkitError):
    """The disk, the network or the memory gave out."""

    exit_code = 5
