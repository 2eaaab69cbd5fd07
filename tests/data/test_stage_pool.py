"""The pool of workers: order does not matter, dead workers cost one row, and nothing is left running."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable
from concurrent.futures.process import _ExecutorManagerThread
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from vlmdata.config import ImageConfig, InputConfig
from vlmdata.errors import ResourceError
from vlmdata.formats import Reading
from vlmdata.stage import PartitionSummary, StagedFiles, WorkSettings, count_workers, read_marker, run_partitions
from vlmdata.stage.staged import Task

# Worker processes import what they run by name, so it must lie in a file.
WORK = """
import os, signal, struct
from pathlib import Path
from vlmdata.stage.staged import PartitionSummary, StagedFiles
from vlmdata.stage.work import process_partition
import vlmdata.stage.work

def die_on_poison(task, settings):
    real = vlmdata.stage.work.convert_row
    def convert(row, *rest):
        if row["question"] == "poison":
            files = StagedFiles(settings.folder, task.number)
            files.position.write_bytes(struct.pack("<q", next(i for i, (_, r) in enumerate(task.rows) if r is row)))
            os.kill(os.getpid(), signal.SIGKILL)
        return real(row, *rest)
    vlmdata.stage.work.convert_row = convert
    try:
        return process_partition(task, settings)
    finally:
        vlmdata.stage.work.convert_row = real

def die_once(task, settings):
    witness = Path(settings.folder, "died")
    if task.number == 3 and not witness.exists():
        witness.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return process_partition(task, settings)

def die_always(task, settings):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "pool_test_work.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    import pool_test_work  # type: ignore[import-not-found]

    return lambda name: getattr(pool_test_work, name)


@pytest.fixture
def settings(tmp_path: Path) -> WorkSettings:
    (tmp_path / "stage").mkdir()
    return WorkSettings(folder=tmp_path / "stage", key="key", input=InputConfig(), images=ImageConfig())


def make_tasks(questions: list[list[str]], tmp_path: Path) -> list[Task]:
    from vlmdata.config import ColumnConfig
    from vlmdata.formats import plan_reading

    reading: Reading = plan_reading([{"question": "q", "answer": "a"}], InputConfig(), ColumnConfig(), None)
    return [
        Task(
            number=number,
            source="rows.jsonl",
            image_base=tmp_path,
            reading=reading,
            rows=tuple((10 * number + i, {"question": text, "answer": "a"}) for i, text in enumerate(piece)),
        )
        for number, piece in enumerate(questions)
    ]


def by_number(summaries: list[PartitionSummary]) -> list[PartitionSummary]:
    return sorted(summaries, key=lambda each: each.number)


def test_workers_do_what_the_calling_process_does(tmp_path: Path, settings: WorkSettings) -> None:
    tasks = make_tasks([[f"question {i}", "", "another"] for i in range(9)], tmp_path)
    here = by_number(list(run_partitions(tasks, settings, 0)))
    files = [StagedFiles(settings.folder, i) for i in range(9)]
    before = [each.rows.read_bytes() for each in files]
    for each in files:
        each.marker.unlink()
    there = by_number(list(run_partitions(iter(tasks), settings, 2)))
    assert there == here
    assert [each.rows.read_bytes() for each in files] == before
    assert [(each.read, each.kept, dict(each.rejected)) for each in there] == [(3, 2, {"empty_text": 1})] * 9


def test_a_row_that_kills_its_worker_is_left_out(tmp_path: Path, settings: WorkSettings, work: Callable) -> None:
    pieces = [["fine", "good", "poison", "well", "poison"] if i in (1, 4) else ["fine", "good"] for i in range(6)]
    summaries = by_number(list(run_partitions(make_tasks(pieces, tmp_path), settings, 2, work("die_on_poison"))))
    assert [each.read for each in summaries] == [len(piece) for piece in pieces]
    assert [dict(each.rejected) for each in summaries] == [
        {"worker_crashed": 2} if i in (1, 4) else {} for i in range(6)
    ]
    marker = read_marker(StagedFiles(settings.folder, 4))
    assert marker is not None
    assert [(each.row, each.reason) for each in marker.rejections] == [(42, "worker_crashed"), (44, "worker_crashed")]


def test_a_worker_that_the_pool_has_missed_is_not_waited_for(
    tmp_path: Path, settings: WorkSettings, work: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broken pool misses one that is being started while it ends the others, and then waits for it."""
    terminate, ask_workers = BaseProcess.terminate, _ExecutorManagerThread.shutdown_workers
    missed: list[BaseProcess] = []
    asked: list[object] = []

    def end(process: BaseProcess) -> None:
        if threading.current_thread() is threading.main_thread():
            terminate(process)
        else:
            missed.append(process)

    def ask_all_but_the_first(manager: _ExecutorManagerThread) -> None:
        if asked:
            ask_workers(manager)
        asked.append(manager)

    monkeypatch.setattr(BaseProcess, "terminate", end)
    monkeypatch.setattr(_ExecutorManagerThread, "shutdown_workers", ask_all_but_the_first)
    summaries = list(run_partitions(make_tasks([["fine"]] * 8, tmp_path), settings, 2, work("die_once")))
    assert sum(each.kept for each in summaries) == 8
    assert missed
    assert not any(process.is_alive() for process in missed)


def test_a_worker_that_dies_once_costs_no_row(tmp_path: Path, settings: WorkSettings, work: Callable) -> None:
    summaries = list(run_partitions(make_tasks([["fine"]] * 8, tmp_path), settings, 2, work("die_once")))
    assert sorted(each.number for each in summaries) == list(range(8))
    assert sum(each.kept for each in summaries) == 8


def test_workers_that_always_die_end_the_build(tmp_path: Path, settings: WorkSettings, work: Callable) -> None:
    with pytest.raises(ResourceError, match="worker processes die while they work on rows 0 to 0"):
        list(run_partitions(make_tasks([["fine"]], tmp_path), settings, 1, work("die_always")))


def test_tasks_are_taken_as_workers_become_free(tmp_path: Path, settings: WorkSettings) -> None:
    taken = 0

    def tasks():
        nonlocal taken
        for task in make_tasks([["fine"]] * 40, tmp_path):
            taken += 1
            yield task

    running = run_partitions(tasks(), settings, 2)
    next(running)
    assert taken <= 5
    running.close()


def test_count_workers() -> None:
    assert count_workers(3) == 3
    assert count_workers(0) == 0
    assert count_workers(None) >= 1
