"""A pool of worker processes that outlives its workers: a row that kills one is found, named and left out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait as wait_for_handles
from types import ModuleType
from typing import TypeAlias

from vlmdata.errors import ResourceError
from vlmdata.stage.staged import PartitionSummary, StagedFiles, Task, WorkSettings
from vlmdata.stage.work import process_partition
from vlmdata.worker_server import WORKER_ENVIRONMENT, start_worker_server

__all__ = ["count_workers", "run_alone", "run_partitions"]

Work: TypeAlias = Callable[[Task, WorkSettings], PartitionSummary]

# Partitions that wait for a worker; more would only fill the memory with their rows.
_WAITING_PER_WORKER = 1
# A partition that dies this often, each time at another row, is not worth more tries.
_MAX_POISON_ROWS = 64


def count_workers(wanted: int | None) -> int:
    """Return the number of worker processes: as wanted, else one for each core that this process may use."""
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_partitions(
    tasks: Iterable[Task], settings: WorkSettings, workers: int, work: Work = process_partition
) -> Iterator[PartitionSummary]:
    """Do all partitions, `workers` at a time, and yield their summaries as they are done, in any order.

    Tasks are taken one by one as workers become free, so that their rows never pile up.

    Args:
        tasks: the partitions.
        settings: what is the same for all.
        workers: processes; 0 works in the calling process.
        work: what does one partition; a function that worker processes can import.

    Raises:
        ResourceError: worker processes do not start, or die without end.
        OSError: the staging folder cannot be written.
    """
    if workers == 0:
        for task in tasks:
            yield work(task, settings)
        return
    waiting = iter(tasks)
    at_once = workers * (1 + _WAITING_PER_WORKER)
    running: dict[Future[PartitionSummary], Task] = {}
    pool = _start_pool(workers)
    try:
        while True:
            try:
                yield from _run_until_crash(pool, waiting, running, work, settings, at_once)
                return
            except BrokenProcessPool:
                # one worker died, and the pool ended the others with it: whose fault it was shows when each of their
                # partitions runs alone. A worker that was started at that moment it may have missed, and would wait for
                _end_pool(pool)
                finished = [future.result() for future in running if _is_done(future)]
                suspects = [task for future, task in running.items() if not _is_done(future)]
                running.clear()
                yield from finished
                for task in suspects:
                    yield run_alone(task, settings, work)
                pool = _start_pool(workers)
    finally:
        _end_pool(pool)


def _run_until_crash(
    pool: ProcessPoolExecutor,
    waiting: Iterator[Task],
    running: dict[Future[PartitionSummary], Task],
    work: Work,
    settings: WorkSettings,
    at_once: int,
) -> Iterator[PartitionSummary]:
    """Keep the pool filled and yield what is done; `running` tells the caller what was under way when it broke."""
    exhausted = False
    while True:
        while not exhausted and len(running) < at_once:
            task = next(waiting, None)
            if task is None:
                exhausted = True
                break
            # noted before it is submitted: a pool that has just broken refuses it, and it must not be lost
            unsent: Future[PartitionSummary] = Future()
            running[unsent] = task
            with _hidden_main():
                submitted = pool.submit(work, task, settings)
            running[submitted] = running.pop(unsent)
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            summary = future.result()
            del running[future]
            yield summary


def _is_done(future: Future[PartitionSummary]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _end_pool(pool: ProcessPoolExecutor) -> None:
    """End the workers at once; partitions that they are in the middle of are done again by the next build."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def run_alone(task: Task, settings: WorkSettings, work: Work) -> PartitionSummary:
    """Do one partition in a process of its own; each time the process dies, leave out the row it was working on.

    Raises:
        ResourceError: the process dies without end.
        OSError: the staging folder cannot be written.
    """
    files = settings.work_files(task.number)
    while True:
        files.position.unlink(missing_ok=True)
        pool = _start_pool(1)
        try:
            with _hidden_main():
                future = pool.submit(work, task, settings)
            return future.result()
        except BrokenProcessPool:
            position = _read_position(files)
            if position is None or position in task.poison or len(task.poison) >= _MAX_POISON_ROWS:
                raise ResourceError(
                    f"{task.source}: worker processes die while they work on rows {task.rows[0][0]} to "
                    f"{task.rows[-1][0]}; is there enough memory?"
                ) from None
            task = replace(task, poison=task.poison | {position})
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_position(files: StagedFiles) -> int | None:
    try:
        return int(struct.unpack("<q", files.position.read_bytes())[0])
    except (OSError, struct.error):
        return None


def _start_pool(workers: int) -> ProcessPoolExecutor:
    """Start worker processes and make sure that they run.

    Raises:
        ResourceError: they do not.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=start_worker_server(),
        initializer=_prepare_worker,
        initargs=({name: value for name, value in os.environ.items() if name not in WORKER_ENVIRONMENT},),
    )
    try:
        with _hidden_main():
            first = pool.submit(os.getpid)
        first.result()
    except BrokenProcessPool:
        pool.shutdown(wait=True, cancel_futures=True)
        raise ResourceError("worker processes do not start; --workers 0 does without them") from None
    return pool


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a worker that is started meanwhile from importing the program's main module.

    Nothing of it is needed there, and a script without a guard around its main part would begin its build anew.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _prepare_worker(environment: dict[str, str]) -> None:
    """Leave Ctrl-C to the main process, and end when the main process is gone.

    Args:
        environment: the main process's variables as they are now; the server has those of its own start.
    """
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_handles([sentinel])
    os._exit(1)
