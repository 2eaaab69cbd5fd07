"""Programs timed by turns: their steps do not overlap, and what is said to be alone was."""

from __future__ import annotations

import functools
import json
import signal
import sys
from pathlib import Path

import turns

_STEPPER = """
import json, sys, time
out, steps = sys.argv[1], int(sys.argv[2])
for _ in range(steps):
    began = time.monotonic()
    while time.monotonic() - began < 0.03:
        last = time.monotonic()
    with open(out, "a") as file:
        file.write(json.dumps([began, last]) + "\\n")
"""


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_steps_done_alone_overlap_with_no_other_program(tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b")]
    programs = [
        turns.Program(
            name=out.name,
            command=[sys.executable, "-c", _STEPPER, str(out), "24"],
            log=tmp_path / f"{out.name}.log",
            count_steps=functools.partial(count_lines, out),
            steps=24,
        )
        for out in outs
    ]
    turns.take_turns(programs, warm_steps=4, steps_a_turn=5, ready_limit_s=60, limit_s=60)

    steps = [[json.loads(line) for line in out.read_text().splitlines()] for out in outs]
    assert [len(some) for some in steps] == [24, 24]
    for mine, others, program in zip(steps, steps[::-1], programs, strict=True):
        assert len(program.alone) >= 10
        for number in program.alone:
            began, ended = mine[number]
            # another's step that began before and ended after stood still in between
            assert not any(began < start < ended or began < end < ended for start, end in others)


def test_a_program_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    out = tmp_path / "a"
    common = {"log": tmp_path / "log", "steps": 8}
    good = turns.Program(
        name="good",
        command=[sys.executable, "-c", _STEPPER, str(out), "8"],
        count_steps=functools.partial(count_lines, out),
        **common,
    )
    bad = turns.Program(name="bad", command=[sys.executable, "-c", "raise SystemExit(3)"], count_steps=int, **common)
    turns.take_turns([bad, good], warm_steps=2, steps_a_turn=3, ready_limit_s=60, limit_s=60)
    assert count_lines(out) == 8
    assert bad.process.returncode == 3


def test_a_program_that_does_not_get_ready_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "a"
    common = {"log": tmp_path / "log", "steps": 20}
    stepper = [sys.executable, "-c", _STEPPER, str(out), "20"]
    good = turns.Program(name="good", command=stepper, count_steps=functools.partial(count_lines, out), **common)
    idle = turns.Program(
        name="idle", command=[sys.executable, "-c", "import time; time.sleep(600)"], count_steps=int, **common
    )
    turns.take_turns([idle, good], warm_steps=2, steps_a_turn=6, ready_limit_s=3, limit_s=60)
    assert idle.process.returncode == -signal.SIGKILL
    assert count_lines(out) == 20
    assert len(good.alone) >= 12
