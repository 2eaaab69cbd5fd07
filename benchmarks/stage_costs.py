"""What each step of a build costs for one image, on one processor: the figures that docs/scale.md reckons with.

    python benchmarks/stage_costs.py [--photos 1024] [--scans 60] [--one-machine]

Runs the steps of `vlmdata build` one after the other in this process, on photos that are stored as they are and on
scanned pages of 2 to 10 Mpx that are reduced, and divides by the number of images. They are prepared as on the nodes of
a cluster, which stage the bytes of all images; with `--one-machine`, those that are stored as they came stay in their
files until shards are written. `MB/s` is of what goes into a step, or, for shards, comes out of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from speed_sets import make_set
from vlmdata.build_config import BuildConfig
from vlmdata.dedup import link_images
from vlmdata.manifest import Counts, Manifest, hash_file
from vlmdata.merging import Merges
from vlmdata.pipeline import plan_inputs
from vlmdata.plain_arrow import leave_pandas_out
from vlmdata.publish import write_splits
from vlmdata.shards import BuiltFolder
from vlmdata.sources import open_sources
from vlmdata.stage import WorkSettings, cut_partitions, gather_signatures
from vlmdata.stage.work import process_partition
from vlmdata.stats import compute_stats, count_splits

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "clothing" / "images"
T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1024)
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--source", type=Path, default=PHOTOS, help="folder of JPEG photos to cut from")
    parser.add_argument("--one-machine", action="store_true", help="leave images stored as they came in their files")
    options = parser.parse_args()
    print(f"{'set':8s}{'images':>7s}  {'step':28s}{'CPU ms an image':>16s}{'KB an image':>13s}{'MB/s':>8s}")
    for kind, count in (("photos", options.photos), ("scans", options.scans)):
        if count:
            with tempfile.TemporaryDirectory() as name:
                make_set(Path(name, "set"), kind, count, options.source)
                measure_set(kind, Path(name, "set"), Path(name, "stage"), leave_originals=options.one_machine)
    return 0


def measure_set(kind: str, folder: Path, stage: Path, *, leave_originals: bool) -> None:
    """Run the steps over one set and print a line for each."""
    config = BuildConfig.from_values({"inputs": [str(folder)], "out": stage / "out", "workers": 0})
    sources = open_sources(config.inputs, config.input)
    inputs = plan_inputs(sources, config, lambda _: None)
    stage.mkdir()
    leave_pandas_out()
    settings = WorkSettings(
        folder=stage, key="", input=config.input, images=config.images, leave_originals=leave_originals
    )
    images = 0

    def show(step: str, work: Callable[[], T], size: Callable[[T], int]) -> T:
        began = time.process_time()
        result = work()
        seconds = time.process_time() - began
        count = images or sum(each.images for each in result)  # type: ignore[attr-defined]
        megabytes = size(result) / 1e6
        print(
            f"{kind:8s}{count:>7d}  {step:28s}{seconds / count * 1000:>16.3f}{megabytes / count * 1000:>13.1f}"
            f"{megabytes / seconds if seconds else 0:>8.0f}",
            flush=True,
        )
        return result

    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    prepared = show(
        "prepare (on the nodes)",
        lambda: [process_partition(task, settings) for task in cut_partitions(inputs)],
        lambda _: files,
    )
    images = sum(each.images for each in prepared)
    show("read rows", lambda: sum(len(task.rows) for task in cut_partitions(inputs)), lambda _: 0)
    signatures = staged_bytes(stage, "signatures.arrow")
    staged = show("gather signatures", lambda: gather_signatures(stage, prepared), lambda _: signatures)
    show(
        "link near-duplicates", lambda: link_images(staged.signatures, 31), lambda _: staged_bytes(stage, "thumbnails")
    )
    kept = sum(each.kept for each in prepared)
    split_of = staged.first_row.repeat([each.kept for each in prepared]) * 0
    ready = stage / "ready"
    ready.mkdir()
    entries = show(
        "write shards",
        lambda: write_splits(ready, stage, staged, Merges.none(), split_of, ["train"], config.output.shard_bytes),
        lambda splits: sum(shard.bytes for entry in splits.values() for shard in entry.shards),
    )
    manifest = Manifest(fingerprint="", counts=Counts(read=kept, kept=kept), splits=entries)
    built = BuiltFolder(ready, manifest)
    shards = [ready / shard.file for entry in entries.values() for shard in entry.shards]
    total = sum(path.stat().st_size for path in shards)
    show("figures", lambda: compute_stats(built, count_splits(built)), lambda _: total)
    show("SHA-256 of what is written", lambda: [hash_file(path) for path in shards], lambda _: total)


def staged_bytes(stage: Path, suffix: str) -> int:
    """The size of all staged files of one kind."""
    return sum(path.stat().st_size for path in stage.glob(f"part-*.{suffix}"))


if __name__ == "__main__":
    sys.exit(main())
