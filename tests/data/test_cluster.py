"""Builds on a Ray cluster of two nodes: the bytes of a local build, whatever dies on the way."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmdata.stage.cluster
import vlmdata.stage.partitions
from vlmdata import BuildConfig, ConfigError, MissingDependencyError, ResourceError
from vlmdata.build import BuildReport, build_folder
from vlmdata.cli import main

ROWS, PICTURES = 2600, 8
# Every Python process of the cluster runs this first: a picture that kills, and pictures that take their time. A node's
# worker that has begun with one leaves a file, named after the process of the node that started it, and goes no further
# while there is another one that says so.
CUSTOMIZE = """
import os, signal, sys, time
if any("default_worker" in word or "forkserver" in word for word in sys.orig_argv):
    import vlmdata.stage.remembered as remembered
    real = remembered.prepare_pages
    def prepare(data, *rest):
        if b"KILL" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        begun = os.path.join(os.path.dirname(__file__), str(os.getppid()))
        open(begun, "a").close()
        time.sleep(0.1)
        while os.path.exists(begun + ".held"):
            time.sleep(0.01)
        return real(data, *rest)
    remembered.prepare_pages = prepare
"""


@pytest.fixture(scope="module")
def cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without processors and two nodes with one each."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    code = tmp_path_factory.mktemp("code")
    (code / "sitecustomize.py").write_text(CUSTOMIZE)
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("AWS_ENDPOINT_URL", s3_server)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        try:
            running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
            nodes = [running.add_node(num_cpus=1, **small)]
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            pytest.skip("this machine is too busy to start a Ray node within Ray's own 30 s")
        yield SimpleNamespace(address=running.address, cluster=running, nodes=nodes, begun=code)
        running.shutdown()


def write_set(folder: Path) -> Path:
    """Rows of six partitions about a few pictures; one row's picture kills the process that opens it."""
    folder.mkdir()
    for i in range(PICTURES):
        coarse = np.random.default_rng(i).integers(0, 256, (15, 20, 3), np.uint8)
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    lines = [{"image": f"{i % PICTURES}.jpg", "question": "Which row?", "answer": f"row {i}"} for i in range(ROWS)]
    lines[600]["image"] = "absent.jpg"
    lines[1300]["question"] = " "
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def with_killer(folder: Path) -> Path:
    """The same set, with a picture that kills in the third partition: the first two are begun with."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    (folder / "killer.png").write_bytes(buffer.getvalue() + b"KILL")
    lines = (folder / "set.jsonl").read_text().splitlines()
    lines[1200] = json.dumps({"image": "killer.png", "question": "Which row?", "answer": "the last one"})
    (folder / "set.jsonl").write_text("\n".join(lines))
    return folder


def build(folder: Path | str, out: Path | str, **values: Any) -> BuildReport:
    config = {"min_side": 8, "inputs": [f"{folder}/set.jsonl"], "out": out, "shard_size": "100KB", **values}
    on_partition = config.pop("on_partition", lambda _: None)
    return build_folder(BuildConfig.from_values(config), on_partition=on_partition)


def checksums(report: BuildReport) -> dict[str, str]:
    return {shard.file: shard.sha256 for split in report.manifest.splits.values() for shard in split.shards}


def test_a_cluster_writes_the_bytes_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    here = build(folder, tmp_path / "here", workers=1, split="val=0.1")
    there = build(folder, tmp_path / "there", engine="ray", ray_address=cluster.address, split="val=0.1")
    assert checksums(there) == checksums(here)
    assert len(checksums(there)) > 2
    assert there.manifest.fingerprint == here.manifest.fingerprint
    rejected = "rejected.jsonl"
    assert (tmp_path / "there" / rejected).read_bytes() == (tmp_path / "here" / rejected).read_bytes()
    assert dict(there.manifest.counts.rejected) == {"empty_text": 1, "image_missing": 1}


@pytest.mark.slow  # a minute: the loss of a node is noticed by its silence
def test_a_lost_node_costs_nothing(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_killer(write_set(tmp_path / "set"))
    lost = []
    result = vlmdata.stage.cluster._result

    def count_lost(ray: Any, reference: Any, task: Any, tries: int) -> Any:
        summary = result(ray, reference, task, tries)
        if summary is None:
            lost.append(task.number)
        return summary

    node = cluster.nodes.pop()
    [raylet] = node.all_processes["raylet"]
    begun = cluster.begun / str(raylet.process.pid)
    begun.unlink(missing_ok=True)  # by the test before this one
    held = begun.with_suffix(".held")
    held.touch()

    def kill_node() -> None:
        """While it is at its first partition: idle, it would have nothing to lose."""
        while not begun.exists():
            time.sleep(0.01)
        try:
            cluster.cluster.remove_node(node, allow_graceful=False)
        finally:
            held.unlink()

    monkeypatch.setattr(vlmdata.stage.cluster, "_result", count_lost)
    # so that the row that kills is in the third partition
    monkeypatch.setattr(vlmdata.stage.partitions, "FIRST_PARTITION_ROWS", 512)
    options = {"engine": "ray", "ray_address": cluster.address}
    killer = threading.Thread(target=kill_node, daemon=True)
    killer.start()
    there = build(folder, tmp_path / "there", **options)
    killer.join(timeout=60)
    assert not killer.is_alive()
    assert len(lost) >= 2  # that of the poison row, and what the node was at
    assert dict(there.manifest.counts.rejected) == {"empty_text": 1, "image_missing": 1, "worker_crashed": 1}
    lines = [json.loads(line) for line in (tmp_path / "there" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines][1] == (1200, "worker_crashed")
    cluster.nodes.append(cluster.cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
    # the picture is none for a process without the patch, whose reason is another; every kept row is the same
    here = build(folder, tmp_path / "here", workers=1)
    assert checksums(there) == checksums(here)


@pytest.mark.slow  # more than 15 s: two builds on the cluster
def test_nodes_that_share_nothing_meet_in_a_bucket(cluster: Any, s3: Any, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    s3.put(str(folder), "bucket/set", recursive=True)
    here = build(folder, tmp_path / "here", workers=1)
    options = {"engine": "ray", "ray_address": cluster.address}
    staged: list[list[str]] = []

    def look(_: Any) -> None:
        s3.invalidate_cache()
        staged.append([name for name in s3.find("bucket/out/.stage") if "/part-" in name])
        if len(staged) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("s3://bucket/set", "s3://bucket/out", on_partition=look, **options)
    assert staged[0]
    assert not s3.exists("bucket/out/manifest.json")
    there = build("s3://bucket/set", "s3://bucket/out", **options)
    assert there.partitions_reused >= 2
    assert checksums(there) == checksums(here)
    s3.invalidate_cache()
    assert sorted(name.rpartition("/")[2] for name in s3.find("bucket/out/.stage")) == ["inputs.arrow", "started.json"]


@pytest.mark.slow  # with the cluster of the tests above
def test_what_nodes_do_not_share_is_said(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vlmdata.pipeline

    folder = write_set(tmp_path / "set")
    options = {"engine": "ray", "ray_address": cluster.address}
    real = vlmdata.stage.cluster.version
    monkeypatch.setattr(vlmdata.pipeline, "version", lambda name: "0.1" if name == "pillow" else real(name))
    with pytest.raises(MissingDependencyError, match=r"^node .*: pillow is .*, here it is 0.1"):
        build(folder, tmp_path / "out", **options)
    monkeypatch.undo()
    # what a node sees that does not share the folder: nothing of what is put there
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: 0 if "witness" in path.name else write(path, data))
    with pytest.raises(
        ResourceError, match=r"^node .* does not see .*/out/.stage; --out \(or --scratch\) must lie on a"
    ):
        build(folder, tmp_path / "out", **options)
    monkeypatch.undo()
    # the folder of the images is gone for whoever looks for it later
    real_run = vlmdata.stage.cluster._check_nodes
    monkeypatch.setattr(
        vlmdata.stage.cluster, "_check_nodes", lambda *rest: (real_run(*rest), folder.rename(tmp_path / "moved"))
    )
    with pytest.raises(ResourceError, match=r"^node .* does not see .*/set, which image paths are relative to"):
        build(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_engine_options_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = write_set(tmp_path / "set") / "set.jsonl"
    with pytest.raises(ConfigError, match=r"workers must be at least 1 with --engine ray"):
        BuildConfig.from_values({"inputs": ["a"], "out": "b", "engine": "ray", "workers": 0})
    with pytest.raises(ConfigError, match="ray_address is for --engine ray"):
        BuildConfig.from_values({"inputs": ["a"], "out": "b", "ray_address": "auto"})
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["build", str(rows), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 4
    assert capsys.readouterr().err == "error: --engine ray needs ray: pip install 'vlmdata[ray]'\n"


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    folder = write_set(tmp_path / "set")
    with pytest.raises(ResourceError, match=r"^the Ray cluster 127.0.0.1:1 cannot be reached"):
        build(folder, tmp_path / "out", engine="ray", ray_address="127.0.0.1:1")
