"""The same build by worker processes of this machine and by a Ray cluster of as many nodes with one processor each.

    python benchmarks/ray_scaling.py [--rows 2048] [--rounds 3]

Builds with `--engine local --workers 1` and `2`, and with `--engine ray` on clusters of one and of two nodes that run
on this machine (`ray.cluster_utils.Cluster`), on the same photos, one after the other, round by round. Times are whole
commands; a cluster is started before its commands and not counted, connecting to it is. `CPU s` is the processor time
of all processes, the cluster's too, looked at five times a second. `per image` is what a further image costs of it,
from a second, smaller set, so that what each build needs once (imports, connecting, checking the nodes) stands apart,
as `once`. Shards are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from speed_measuring import adopt_orphans
from speed_sets import make_set

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "clothing" / "images"
SMALL_SHARE = 0.25
SAMPLE_S = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048, help="photos; up to 512 make a partition")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of JPEG photos to cut from")
    options = parser.parse_args()
    adopt_orphans()
    results: dict[tuple[str, int, int], list[tuple[float, float]]] = defaultdict(list)
    shards: dict[int, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory() as name:
        sets = {}
        for rows in (options.rows, int(options.rows * SMALL_SHARE)):
            sets[rows] = Path(name, f"set-{rows}")
            make_set(sets[rows], "photos", rows, options.photos)
        for _ in range(options.rounds):
            for count in (1, 2):
                with cluster(count) as address:
                    for rows, folder in sets.items():
                        for engine in ("local", "ray"):
                            taken, worked, sums = build(folder, Path(name, "out"), engine, count, address)
                            results[engine, count, rows].append((taken, worked))
                            shards[rows].add(sums)
    print_table(results, list(sets))
    same = all(len(each) == 1 for each in shards.values())
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(
        f"shards of all builds of a set: {'the same' if same else 'NOT THE SAME'}; {os.cpu_count()} cores, load {load}"
    )
    return 0 if same else 1


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Start a head without processors and nodes with one each, and give the address."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"object_store_memory": 100 << 20, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        for _ in range(nodes):
            running.add_node(num_cpus=1, **small)
        yield running.address
    finally:
        running.shutdown()


def build(folder: Path, out: Path, engine: str, count: int, address: str) -> tuple[float, float, str]:
    """Run one build and return its seconds, the processor seconds of all that it makes work, and its checksums."""
    shutil.rmtree(out, ignore_errors=True)
    how = ["--workers", str(count)] if engine == "local" else ["--ray-address", address]
    command = [sys.executable, "-m", "vlmdata", "build", str(folder), "--out", str(out), "--engine", engine, *how]
    before = cpu_seconds()
    seen = dict(before)
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            # Ray's nodes do not keep the times of workers that have ended
            seen.update(cpu_seconds())
            time.sleep(SAMPLE_S)
    taken = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command[3:]} ended with {process.returncode}")
    manifest = json.loads((out / "manifest.json").read_text())
    worked = sum(each - before.get(pid, 0.0) for pid, each in seen.items())
    return taken, worked, json.dumps(manifest["splits"])


def cpu_seconds() -> dict[int, float]:
    """The processor time so far of each process below this one, those of a cluster among them."""
    times = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times[process.pid] = sum(process.cpu_times()[:2])
    return times


def print_table(results: dict[tuple[str, int, int], list[tuple[float, float]]], rows: list[int]) -> None:
    """Print a line for each engine and number of processors."""
    large, small = rows
    print(
        f"{'engine':8s}{'processors':>11s}{'seconds':>9s}{'spread':>16s}{'against 1':>11s}"
        f"{'CPU s':>8s}{'once':>7s}{'per image, ms':>15s}"
    )
    slopes: dict[tuple[str, int], float] = {}
    for engine in ("local", "ray"):
        for count in (1, 2):
            times, works = zip(*results[engine, count, large], strict=True)
            median, work = statistics.median(times), statistics.median(works)
            less = statistics.median(each for _, each in results[engine, count, small])
            slopes[engine, count] = slope = (work - less) / (large - small)
            gain = statistics.median(each for each, _ in results[engine, 1, large]) / median
            spread = f"{min(times):.1f} to {max(times):.1f}"
            print(
                f"{engine:8s}{count:>11d}{median:>9.1f}{spread:>16s}{gain:>9.2f} x"
                f"{work:>8.1f}{work - slope * large:>7.1f}{slope * 1000:>15.2f}"
            )
    for count in (1, 2):
        overhead = slopes["ray", count] / slopes["local", count] - 1
        print(f"ray against local, {count} processors: {overhead:+.0%} processor time for a further image")


if __name__ == "__main__":
    sys.exit(main())
