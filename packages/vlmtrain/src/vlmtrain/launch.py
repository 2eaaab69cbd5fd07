"""`--gpus N`: one process for each GPU, as torchrun would start them, with their signals and errors brought together.

torchrun itself gives a stopped process 30 seconds and prints a report for each failed one. Here a stop waits for the
checkpoint, a second stop ends everything, and of an error that all processes meet one line is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vlmdata.errors import ToolkitError

__all__ = ["describe_bug", "in_group", "launch", "report_failure", "watch_parent"]

_ERROR_FILE = "VLMTRAIN_ERROR_FILE"
_PARENT = "VLMTRAIN_PARENT"
# After one process has failed, the others may be meeting the same error or waiting for it: so long, in seconds.
_GRACE = 10.0


def in_group(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of a group that torchrun or `launch` started."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def launch(processes: int, command: Sequence[str]) -> int:
    """Runs a command in a group of processes, and waits for all of them.

    The first SIGINT or SIGTERM is handed to all, which save and stop; the second ends them.

    Args:
        processes: How many.
        command: What each of them runs.

    Returns:
        The exit code that stands for all: 0, or that of the process that failed first. Its error is printed.
    """
    with tempfile.TemporaryDirectory(prefix="vlmtrain-") as folder:
        group = _Group(processes, command, Path(folder))
        try:
            return group.wait()
        finally:
            group.kill()


class _Group:
    """The running processes."""

    def __init__(self, count: int, command: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._signals = 0
        self._ended: dict[int, int] = {}
        # before the handlers, which look at it
        self._members: list[subprocess.Popen[bytes]] = []
        self._before = {number: signal.signal(number, self._forward) for number in (signal.SIGINT, signal.SIGTERM)}
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            _PARENT: str(os.getpid()),
        }
        # torch would say at the first step that no layer was idle
        usual = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        for index in range(count):
            own = {"RANK": str(index), "LOCAL_RANK": str(index), _ERROR_FILE: str(folder / f"{index}.json")}
            self._start(index, list(command), {**usual, **os.environ, **shared, **own})

    def _start(self, index: int, command: list[str], environment: dict[str, str]) -> None:
        # the first process speaks for all
        log = (self._folder / f"{index}.log").open("wb") if index else contextlib.nullcontext()
        with log as errors:
            self._members.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL if index else None,
                    stderr=errors,
                    # a terminal's Ctrl-C reaches this process alone, which hands it on
                    start_new_session=True,
                )
            )

    def wait(self) -> int:
        deadline = None
        while len(self._ended) < len(self._members):
            for index, member in enumerate(self._members):
                if index not in self._ended and member.poll() is not None:
                    self._ended[index] = member.returncode
                    if member.returncode and deadline is None:
                        deadline = time.monotonic() + _GRACE
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
            time.sleep(0.05)
        failed = [index for index, code in self._ended.items() if code]
        return self._tell(failed) if failed else 0

    def kill(self) -> None:
        for member in self._members:
            if member.poll() is None:
                member.kill()
            member.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        for member in self._members:
            if member.poll() is None:
                member.send_signal(number) if self._signals <= 2 else member.kill()

    def _tell(self, failed: list[int]) -> int:
        """Prints the error of the process whose failure was not another one's, and returns its code.

        Args:
            failed: Processes in the order in which they ended.
        """
        reports = {index: path for index in failed if (path := self._folder / f"{index}.json").is_file()}
        told = [json.loads(reports[index].read_text(encoding="utf-8")) for index in sorted(reports)]
        # whoever lost a peer failed because of another one, and so did whoever was ended here for waiting too long
        own = [each for each in told if not each["lost_peer"]]
        silent = [index for index in failed if index not in reports]
        if silent and not own:
            # what the first process has said for itself is seen already
            return self._tell_of_silent(0 if 0 in silent and self._ended[0] > 0 else silent[0])
        shown = (own or told)[0]
        sys.stderr.write("".join(f"{line}\n" for line in shown["lines"]))
        return int(shown["code"])

    def _tell_of_silent(self, index: int) -> int:
        """The same for a process without a report: a signal ended it, or it wrote to its stderr and left."""
        code = self._ended[index]
        if code < 0:
            print(
                f"error: process {index} of {len(self._members)} was ended by {signal.Signals(-code).name}"
                + (" (did the machine's memory run out?)" if -code == signal.SIGKILL else ""),
                file=sys.stderr,
            )
            return 5
        if index:
            sys.stderr.write((self._folder / f"{index}.log").read_text(encoding="utf-8", errors="replace"))
        return code


def report_failure(error: BaseException, lines: Sequence[str], code: int) -> bool:
    """Leaves a process's error to the one that started the group.

    Args:
        error: What ended the process.
        lines: What would be printed.
        code: The exit code.

    Returns:
        Whether there is such a process; if not, the caller prints.
    """
    path = os.environ.get(_ERROR_FILE)
    if path is None:
        return False
    report: dict[str, Any] = {"lines": list(lines), "code": code, "lost_peer": _is_lost_peer(error)}
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(report), encoding="utf-8")
    temporary.replace(path)
    return True


def describe_bug(error: BaseException) -> list[str]:
    """The traceback, with the process that it comes from."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return [f"in process {os.environ.get('RANK')}:", *lines]


def watch_parent() -> None:
    """Ends this process when the one that started the group is gone, however it ended: no GPU stays taken."""
    if _PARENT not in os.environ:
        return

    def wait() -> None:
        # the parent never writes; the pipe closes with it
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _is_lost_peer(error: BaseException) -> bool:
    if isinstance(error, ToolkitError):
        return False
    text = str(error)
    words = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "recvValue failed")
    return type(error).__name__.startswith("Dist") or any(each in text for each in words)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
