"""Stopping a run from outside: in training, the first SIGTERM or Ctrl-C saves a checkpoint, a second ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from vlmdata.errors import ToolkitError

__all__ = ["StopRequest", "Stopped"]

_STDOUT, _STDERR = 1, 2


class Stopped(ToolkitError):
    """A signal ended the run after it saved a checkpoint."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """A context in which SIGTERM and SIGINT end the program in one line, or wait for a checkpoint.

    There is nothing to save before the first step, nor after the last: there a signal ends the program at once. Within
    `deferred` the first one is remembered in `signal` instead.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._defers = False
        self._has_trained = False
        self._process = 0

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it, the first signal is remembered; who trains asks for it after each step."""
        self._defers = self._has_trained = True
        try:
            yield
        finally:
            self._defers = False

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that this signal ended: 130 or 143."""
        return 128 + (self.signal or 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # a loader worker: a terminal's Ctrl-C reaches it too, and its parent decides
            return
        first = self.signal is None
        self.signal = self.signal or number
        name = signal.Signals(number).name
        # print is not safe here: the signal may have come in the middle of another one
        if first and self._defers:
            os.write(_STDOUT, f"{name}: saving a checkpoint after this step; once more ends at once\n".encode())
            return
        words = "; --resume goes on from the last checkpoint" if self._has_trained else " before the first step"
        os.write(_STDERR, f"error: ended by {name}{words}\n".encode())
        raise SystemExit(128 + number)
