"""Memory of `vlmtrain fit` against the number of rows: 2,000 and 20,000 rows, main process and loader workers.

    python benchmarks/fit_memory.py [--rows 2000 20000] [--steps 40] [--workers 2]

Builds both sets from drawn pictures, trains a tiny model on each for the same number of steps, and samples the
anonymous memory (RssAnon) of the process and its children. Mapped pages of the shards do not count: the kernel may
drop them at any time. Prints one table; exits with 1 when the peaks are 200 MB or more apart.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

LIMIT_MB = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[2_000, 20_000])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run("vlmtrain", "tiny", "qwen2.5-vl", work / "model", "--hidden-size", 64, "--layers", 2)
        print(f"{'rows':>8} {'peak RssAnon':>14} {'seconds':>9}")
        for rows in arguments.rows:
            draw_set(work / f"raw-{rows}", rows)
            built = work / f"set-{rows}"
            options = ["--size", "112x112", "--dedup", "none", "--instruction", "Which number is written here?"]
            run("vlmdata", "build", work / f"raw-{rows}" / "rows.csv", "--out", built, *options)
            began = time.monotonic()
            peaks.append(
                peak_of_fit(built, work / "model", work / f"run-{rows}", arguments.steps, arguments.workers) / 1e6
            )
            print(f"{rows:>8,} {peaks[-1]:>11.0f} MB {time.monotonic() - began:>9.1f}", flush=True)
    difference = abs(peaks[1] - peaks[0])
    print(f"{difference:.0f} MB apart (limit {LIMIT_MB} MB); {arguments.workers} workers, {arguments.steps} steps")
    return 0 if difference < LIMIT_MB else 1


def draw_set(folder: Path, rows: int) -> None:
    """Pictures of a number on a coloured ground, with a CSV."""
    (folder / "images").mkdir(parents=True)
    rng = random.Random(0)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "answer"])
        for row in range(rows):
            picture = Image.new("RGB", (112, 112), tuple(rng.randrange(128, 256) for _ in range(3)))
            ImageDraw.Draw(picture).text((20, 40), str(row), fill="black", font_size=28)
            picture.save(folder / "images" / f"{row}.png", compress_level=1)
            writer.writerow([f"images/{row}.png", row])


def run(*command: object) -> None:
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def peak_of_fit(data: Path, model: Path, out: Path, steps: int, workers: int) -> int:
    """Highest sum of RssAnon over the process and its descendants, in bytes."""
    command = [sys.executable, "-m", "vlmtrain", "fit", "--data", data, "--model", model, "--out", out]
    command += ["--max-steps", steps, "--batch-size", 8, "--grad-accum", 1, "--workers", workers]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(anonymous_bytes(pid) for pid in descendants(process.pid)))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak


def descendants(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # the thread has ended between the listing and the reading
            continue
        for child in children:
            found.extend(descendants(int(child)))
    return found


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    sys.exit(main())
