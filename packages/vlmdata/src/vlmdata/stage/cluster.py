"""Partitions as tasks of a Ray cluster: the one module that imports ray.

Rows go out with a task, and counts come back; staged files go to a folder that all nodes share, or to a URL. What was
lost with its worker or with its node is done again, in a process of its own within a task, so that a row that kills its
process is found as it is on one machine (`pool.run_alone`).
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vlmdata.errors import MissingDependencyError, ResourceError, ToolkitError
from vlmdata.locations import copy_from, is_remote, locator
from vlmdata.stage.pool import run_alone
from vlmdata.stage.staged import PartitionSummary, StagedFiles, Task, WorkSettings
from vlmdata.stage.work import process_partition

__all__ = ["run_on_cluster"]

# Partitions sent ahead for each processor, so that none waits for its next one.
_WAITING_PER_CPU = 1
# A partition that is lost this often, each time with its worker or its node, is not worth more tries.
_MAX_TRIES = 6
_WAIT_S = 10.0
_CONNECT_S = 10.0
# A cluster whose last node is gone may get new ones, but not for ever.
_MAX_WAITS_WITHOUT_NODES = 12


def run_on_cluster(
    tasks: Iterable[Task],
    settings: WorkSettings,
    *,
    address: str | None,
    at_once: int | None,
    versions: Mapping[str, str],
    shared: Path | None = None,
) -> Iterator[PartitionSummary]:
    """Do all partitions on a Ray cluster, and yield their summaries as they are done, in any order.

    Args:
        tasks: the partitions.
        settings: what is the same for all; its folder is where this process wants the staged files.
        address: of the cluster; None for what Ray finds by itself, or else starts on this machine.
        at_once: partitions under way at most; None for two for each processor of the cluster.
        versions: of the packages that decide the bytes of a row; nodes must have the same.
        shared: a remote folder that the nodes write to, and that this process copies staged files from; None where
            they can write to the folder itself.

    Raises:
        MissingDependencyError: ray is not installed, or a node lacks what the tasks need.
        ResourceError: the cluster cannot be reached, its nodes do not share the folder, or it loses tasks without end.
        OSError: the staging folder cannot be written.
    """
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("--engine ray needs ray: pip install 'vlmdata[ray]'") from None
    root = settings.input.image_root
    if root is not None and not is_remote(root):
        # tasks have another working directory
        settings = replace(settings, input=replace(settings.input, image_root=os.path.abspath(root)))
    where = replace(settings, folder=shared if shared is not None else settings.folder.absolute())
    with _connected(ray, address):
        waiting = iter(tasks)
        first = list(islice(waiting, 1))
        if first:
            _check_nodes(ray, where.folder, versions)
        for summary in _run(ray, chain(first, waiting), where, at_once):
            if shared is not None:
                _copy_partition(StagedFiles(shared, summary.number), StagedFiles(settings.folder, summary.number))
            yield summary


def _run(ray: Any, waiting: Iterator[Task], settings: WorkSettings, at_once: int | None) -> Iterator[PartitionSummary]:
    """Keep the cluster filled and yield what is done."""
    submit = ray.remote(num_cpus=1, max_retries=0)(_do_partition)
    shared_settings = ray.put(settings)
    running: dict[Any, tuple[Task, int]] = {}
    waits_without_nodes = 0
    try:
        while True:
            cpus = int(ray.cluster_resources().get("CPU", 0))
            limit = at_once or max(1, cpus * (1 + _WAITING_PER_CPU))
            for task in islice(waiting, max(0, limit - len(running))):
                running[submit.remote(task, shared_settings, False)] = task, 1
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=_WAIT_S)
            waits_without_nodes = 0 if done or cpus else waits_without_nodes + 1
            if waits_without_nodes >= _MAX_WAITS_WITHOUT_NODES:
                raise ResourceError(
                    "the Ray cluster has no node left that could work; the next build goes on from here"
                )
            for reference in done:
                task, tries = running.pop(reference)
                summary = _result(ray, reference, task, tries)
                if summary is None:
                    running[submit.remote(task, shared_settings, True)] = task, tries + 1
                else:
                    yield summary
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any, task: Task, tries: int) -> PartitionSummary | None:
    """What a task gave; None where it was lost and is worth another try.

    Raises:
        ToolkitError: as the task did.
        OSError: as the task did.
    """
    try:
        summary: PartitionSummary = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise cause from None
    except ray.exceptions.RayError as error:
        if tries >= _MAX_TRIES:
            raise ResourceError(
                f"{task.source}: rows {task.rows[0][0]} to {task.rows[-1][0]} were lost {tries} times with the worker "
                f"or the node that they were on: {_one_line(error)}"
            ) from None
        return None
    return summary


def _do_partition(task: Task, settings: WorkSettings, alone: bool) -> PartitionSummary:
    """Do one partition on a node.

    Args:
        task: the partition.
        settings: with a folder that all nodes share.
        alone: whether to work in a process of its own.
    """
    with tempfile.TemporaryDirectory(prefix="vlmdata-") as name:
        if is_remote(settings.folder):
            settings = replace(settings, node_folder=Path(name))
        summary = run_alone(task, settings, process_partition) if alone else process_partition(task, settings)
    root = settings.input.image_root or task.image_base
    if summary.rejected.get("image_missing") and not is_remote(root) and not os.path.isdir(root):
        StagedFiles(settings.folder, task.number).marker.unlink(missing_ok=True)
        raise ResourceError(
            f"node {socket.gethostname()} does not see {root}, which image paths are relative to; it must lie on a "
            "file system that all nodes share, or be a URL"
        )
    return summary


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Be connected to a cluster; one that the caller is connected to already is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    # Ray reports its use over the network unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    in_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        _knock(address)
        ray.init(address=address, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ResourceError(f"the Ray cluster {address or ''} cannot be reached: {_one_line(error)}") from error
    if in_main:
        # Ray puts a handler of its own in its place
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Make sure that somebody listens at an address; Ray itself waits for minutes.

    Raises:
        OSError: nobody does.
        ValueError: it is no address.
    """
    if address in (None, "auto", "local"):
        return
    host, colon, port = str(address).removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("an address looks like HOST:PORT or ray://HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def _check_nodes(ray: Any, folder: Path, versions: Mapping[str, str]) -> None:
    """Make sure that every node sees the staging folder and has the same packages.

    Raises:
        MissingDependencyError: a node lacks a package, or has another version of it.
        ResourceError: a node does not see the folder.
    """
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    witness = f"witness-{uuid.uuid4().hex}"
    (folder / witness).write_bytes(b"")
    try:
        probe = ray.remote(num_cpus=0, max_retries=2)(_probe)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        asked = {
            node["NodeManagerHostname"] or node["NodeID"]: probe.options(
                scheduling_strategy=strategy(node_id=node["NodeID"], soft=False)
            ).remote(folder / witness, dict(versions))
            for node in nodes
        }
        for name, reference in asked.items():
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise _explain_probe(name, error.cause) from None
            except ray.exceptions.RayError:
                # it has just gone; its tasks will go to another
                continue
            if problem == "folder":
                raise ResourceError(
                    f"node {name} does not see {locator(folder)}; --out (or --scratch) must lie on a file system that "
                    "all nodes share, or --out be a URL such as s3://bucket/set"
                )
            if problem:
                raise MissingDependencyError(
                    f"node {name}: {problem}; the same bytes need the same versions everywhere"
                )
    finally:
        (folder / witness).unlink(missing_ok=True)


def _explain_probe(name: str, cause: object) -> ToolkitError:
    if isinstance(cause, ToolkitError):
        return cause
    if isinstance(cause, ImportError):
        return MissingDependencyError(f"node {name}: {cause}: pip install 'vlmdata[ray]' on every node")
    return ResourceError(f"node {name}: {_one_line(cause)}")


def _probe(witness: Path, versions: dict[str, str]) -> str | None:
    """Say what is wrong with the node that this runs on, if anything."""
    for name, wanted in versions.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"{name} is not installed: pip install 'vlmdata[ray]' on every node"
        if found != wanted:
            return f"{name} is {found}, here it is {wanted}"
    return None if witness.exists() else "folder"


def _copy_partition(source: StagedFiles, target: StagedFiles) -> None:
    """Copy the files of a partition that a node put into a remote folder; the marker comes last."""
    for path in ("rows", "signatures", "thumbnails", "marker"):
        copy_from(getattr(source, path), getattr(target, path))


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
