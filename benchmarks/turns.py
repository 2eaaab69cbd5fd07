"""Programs that get ready side by side and are then timed by turns, each with the machine to itself.

Loading and compiling take minutes and need nobody's clock; steps take a second and want no neighbour. So a program is
stopped (SIGSTOP, with all of its processes) once it has done its warm-up steps. When all have, they take turns: one
goes on for some steps while the others stand still, as often as it takes. What they hold of the GPU's memory they keep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Program", "take_turns"]

_LOOK_S = 0.01


@dataclass(slots=True, kw_only=True)
class Program:
    """A program whose steps are timed."""

    name: str
    command: Sequence[str]
    log: Path
    """File for what it prints."""
    count_steps: Callable[[], int]
    """How many steps it has done."""
    steps: int
    """How many it will do."""
    environment: dict[str, str] = field(default_factory=dict)
    alone: list[int] = field(default_factory=list)
    """Its steps, from 0, that began and ended while no other program ran."""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, as leader of a process group of its own."""
        print("$", *self.command, flush=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(self.command),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | self.environment,
            )

    def signal(self, number: int) -> None:
        """Sends a signal to all of its processes; those that have ended are past hearing it."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Ends all of its processes, those too that outlived the first."""
        if self.process is None:
            return
        if not self.has_ended:
            print(f"{self.name}: killed after {self.count_steps()} steps", flush=True)
        self.signal(signal.SIGKILL)
        self.process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, well or not."""
        assert self.process is not None
        return self.process.poll() is not None

    @property
    def is_going(self) -> bool:
        """Whether it has steps to do yet."""
        return not self.has_ended and self.count_steps() < self.steps


def take_turns(
    programs: Sequence[Program], *, warm_steps: int, steps_a_turn: int, ready_limit_s: float, limit_s: float
) -> None:
    """Runs programs to their ends; notes in `alone` which of their steps can be compared.

    Args:
        programs: What to run; one that fails leaves the others to go on.
        warm_steps: Steps that each does beside the others.
        steps_a_turn: Steps that each does alone before the next one's turn. The first of them had begun before.
        ready_limit_s: Seconds after which a program that is still warming up is killed, and the others take turns.
        limit_s: Seconds after which whatever still runs is killed.
    """
    began = time.monotonic()
    ends = began + limit_s
    # asked to end, it ends what it has started: programs that stand still would keep the GPU's memory
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for program in programs:
            program.start()
        _get_ready(programs, warm_steps, min(ends, began + ready_limit_s))
        while time.monotonic() < ends and (going := [program for program in programs if program.is_going]):
            for program in going:
                _take_one_turn(program, steps_a_turn, ends)
        for program in programs:
            program.signal(signal.SIGCONT)
        for program in programs:
            assert program.process is not None
            program.process.wait(max(1.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        print(f"not done within {limit_s:.0f} s", flush=True)
    finally:
        for program in programs:
            program.kill()
        signal.signal(signal.SIGTERM, before)


def _get_ready(programs: Sequence[Program], warm_steps: int, ends: float) -> None:
    """Lets programs go side by side until each stands still after its warm-up, or is killed."""
    waiting = list(programs)
    while waiting and time.monotonic() < ends:
        for program in list(waiting):
            if program.has_ended:
                program.kill()
            elif program.count_steps() >= warm_steps:
                program.signal(signal.SIGSTOP)
            else:
                continue
            waiting.remove(program)
            print(f"{program.name}: {'ended' if program.has_ended else 'ready'}", flush=True)
        time.sleep(_LOOK_S)
    for program in waiting:
        program.kill()


def _take_one_turn(program: Program, steps: int, ends: float) -> None:
    first = program.count_steps()
    program.signal(signal.SIGCONT)
    target = min(first + steps, program.steps)
    while not program.has_ended and program.count_steps() < target and time.monotonic() < ends:
        time.sleep(_LOOK_S)
    program.signal(signal.SIGSTOP)
    program.alone += range(first + 1, program.count_steps())
