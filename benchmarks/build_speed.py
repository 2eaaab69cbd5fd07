"""How long `vlmdata build` takes, against decoding the same files and against what is usually done instead.

    python benchmarks/build_speed.py [--rounds 3] [--work DIR] [--img2dataset VENV/bin/img2dataset]

Sets: photos (other cuts of real ones, which a build stores as they are), scanned pages in JPEG and charts in PNG, both
of 2 to 10 Mpx. Programs, two processes each, one after the other on the same files, round by round:

    decode      Pillow reads and decodes every file, and does nothing else: the ceiling
    vlmdata     the whole build with its defaults: near-duplicates, hashes, shards, checksums, report
    recipe      datasets.map + Pillow LANCZOS + imagehash + save_to_disk (speed_programs.py has it in full)
    img2dataset the same files by file:// address, longest side at most 1000 px, JPEG 95; it neither hashes nor compares

Times are whole commands, from the shell to their end. img2dataset asks for old versions of its dependencies, so it is
in no lock: `python -m venv DIR && DIR/bin/pip install img2dataset setuptools`, then name DIR/bin/img2dataset; without
it that row is left out. Files are made once in --work and read from the page cache. The third table holds the pictures
of a build against an exact LANCZOS resize of the full-size picture; the last one how long a user waits for an answer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from speed_fidelity import measure_fidelity
from speed_measuring import adopt_orphans, measure, measure_waits
from speed_sets import KINDS, make_set

HERE = Path(__file__).parent
PHOTOS = HERE.parent.parent / "shared" / "data" / "clothing" / "images"
COUNTS = {"photos": 30_000, "scans": 600, "charts": 600}
# At most so many times as long as decode, and as img2dataset; at least so many times as fast as the recipe.
MOST_OF_DECODE = {"photos": 1.5, "scans": 1.7, "charts": 3.0}
MOST_OF_IMG2DATASET = 1.1
LEAST_OF_RECIPE = {"photos": 8.0, "scans": 8.0, "charts": 1.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe-rounds", type=int, default=1, help="it takes longer than all others together")
    parser.add_argument("--work", type=Path, help="folder for the sets, kept [default: a temporary one]")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of JPEG photos to re-encode")
    parser.add_argument("--img2dataset", type=Path, help="its program, in an environment of its own")
    parser.add_argument("--sets", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="part of the usual number of files")
    parser.add_argument("--programs", nargs="+", default=["decode", "vlmdata", "recipe", "img2dataset"])
    options = parser.parse_args()
    if options.img2dataset is None and "img2dataset" in options.programs:
        print("img2dataset is left out: name its program with --img2dataset (see --help)")
        options.programs.remove("img2dataset")
    adopt_orphans()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        print(f"{'set':8s}{'files':>7s}  {'program':12s}{'seconds':>9s}{'spread':>16s}{'CPU s':>8s}  ratio")
        missed = [problem for kind in options.sets for problem in compare(kind, work, Path(scratch), options)]
        missed += measure_fidelity({kind: set_folder(kind, work, options.share) for kind in options.sets})
        missed += measure_waits(Path(scratch))
    print("\n".join(f"missed: {problem}" for problem in missed) or "all limits are kept")
    return 1 if missed else 0


def set_folder(kind: str, work: Path, share: float) -> Path:
    return work / f"{kind}-{round(COUNTS[kind] * share)}"


def compare(kind: str, work: Path, scratch: Path, options: argparse.Namespace) -> list[str]:
    """Run all programs on one set, print their rows, and return the limits that are missed."""
    folder = set_folder(kind, work, options.share)
    count = round(COUNTS[kind] * options.share)
    make_set(folder, kind, count, options.photos)
    programs = commands(folder, count, scratch, options)
    wall: defaultdict[str, list[float]] = defaultdict(list)
    cpu: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(options.rounds):
        for name, command in programs.items():
            if name == "recipe" and turn >= options.recipe_rounds:
                continue
            shutil.rmtree(scratch / "out", ignore_errors=True)
            # What an earlier program wrote is not to be flushed on this one's time.
            os.sync()
            seconds, cpu_seconds = measure(command)
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
    shutil.rmtree(scratch / "out", ignore_errors=True)
    for name, seconds in wall.items():
        ratio = (
            f"{statistics.median(seconds) / statistics.median(wall['decode']):.2f} x decode" if "decode" in wall else ""
        )
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(
            f"{kind:8s}{count:7,d}  {name:12s}{statistics.median(seconds):9.1f}{spread:>16s}"
            f"{statistics.median(cpu[name]):8.1f}  {ratio}",
            flush=True,
        )
    return find_missed(kind, {name: statistics.median(seconds) for name, seconds in wall.items()})


def commands(folder: Path, count: int, scratch: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    out, urls = scratch / "out", scratch / "urls.txt"
    python = sys.executable
    own = [python, str(HERE / "speed_programs.py")]
    if "img2dataset" in options.programs:
        subprocess.run([*own, "list-urls", str(folder), str(urls)], check=True)
    build = ["build", str(folder / "rows.csv"), "--out", str(out), "--workers", "2", "--image", "image"]
    every = {
        "decode": [*own, "decode", str(folder)],
        "vlmdata": [python, "-m", "vlmdata", *build, "--instruction", "question", "--response", "answer"],
        "recipe": [*own, "recipe", str(folder), str(out)],
        "img2dataset": [
            str(options.img2dataset),
            *(f"--url_list={urls}", f"--output_folder={out}", "--output_format=webdataset", "--image_size=1000"),
            *("--resize_mode=keep_ratio", "--resize_only_if_bigger=True", "--encode_quality=95"),
            *("--processes_count=2", "--thread_count=16", "--enable_wandb=False"),
            # a shard is one process's work: enough of them to keep both busy
            f"--number_sample_per_shard={min(1000, max(1, count // 20))}",
        ],
    }
    return {name: command for name, command in every.items() if name in options.programs}


def find_missed(kind: str, seconds: Mapping[str, float]) -> list[str]:
    limits = {"decode": MOST_OF_DECODE[kind], "img2dataset": MOST_OF_IMG2DATASET, "recipe": 1 / LEAST_OF_RECIPE[kind]}
    return [
        f"{kind}: {seconds['vlmdata'] / seconds[name]:.2f} x {name}, more than {limit:.3g}"
        for name, limit in limits.items()
        if name in seconds and "vlmdata" in seconds and seconds["vlmdata"] > limit * seconds[name]
    ]


if __name__ == "__main__":
    sys.exit(main())
