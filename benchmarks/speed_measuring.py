"""Wall and processor time of whole commands, with all their processes; and how long a user waits for an answer."""

from __future__ import annotations

import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["adopt_orphans", "measure", "measure_waits"]

_PR_SET_CHILD_SUBREAPER = 36
_HELP_LIMIT_S, _FIRST_LINE_LIMIT_S = 0.3, 1.0
_WAITS = 9


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent ends first, so that their time is counted too (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def measure(command: Sequence[str]) -> tuple[float, float]:
    """Run a command and return its wall and processor time in seconds.

    Raises:
        SystemExit: it fails; what it said is printed.
    """
    before = _cpu_seconds()
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        code = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False).returncode
        seconds = time.perf_counter() - began
        if code:
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace")[-4000:])
            raise SystemExit(f"{command[:3]} ended with {code}")
    _reap_orphans()
    return seconds, _cpu_seconds() - before


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap_orphans() -> None:
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def measure_waits(scratch: Path) -> list[str]:
    """Print the time to `--help` and to the first line of a build; return the limits that are missed."""
    rows = scratch / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "What is {i}?", "answer": "{i}"}}\n' for i in range(20_000)))
    build = ["build", str(rows), "--out", str(scratch / "waits"), "--overwrite", "--seed"]
    help_s = [_first_line_s(["--help"]) for _ in range(_WAITS)]
    first_s = [_first_line_s([*build, str(i)]) for i in range(_WAITS)]
    print(f"\n{'wait for':24s}{'seconds':>9s}{'spread':>16s}  limit")
    missed = []
    for name, seconds, limit in (
        ("vlmdata --help", help_s, _HELP_LIMIT_S),
        ("first line of a build", first_s, _FIRST_LINE_LIMIT_S),
    ):
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name:24s}{median:9.2f}{spread:>16s}  {limit:g}", flush=True)
        if median > limit:
            missed.append(f"{name}: {median:.2f} s, more than {limit:g} s")
    return missed


def _first_line_s(arguments: list[str]) -> float:
    """Seconds until a command says something; it is let run to its end."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "vlmdata", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - began
        rest = process.stdout.read()
    if process.returncode:
        raise SystemExit(rest.decode())
    return seconds
