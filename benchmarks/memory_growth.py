"""Whether the memory of `vlmdata build` grows with the set: 10,000 and 100,000 rows with images, a million without.

    python benchmarks/memory_growth.py [--image-rows 10000 100000] [--text-rows 1000000]

Draws the sets, builds each with two workers, a split for validation and otherwise the defaults, and samples the
anonymous memory (RssAnon) of the main process, its workers and the server they are forked from, ten times a second, as
one sum. Mapped files do not count: the kernel may drop them at any time. The images lie as base64 in the rows of one
JSON array (over a gigabyte with 100,000), which must be streamed too. Prints one table; exits with 1 when a limit is
missed.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fit_memory import anonymous_bytes, descendants

GROWTH_LIMIT_MB, TEXT_LIMIT_MB = 150, 2000
_IMAGE_SIDE = 112


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-rows", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--text-rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        print(f"{'rows':>10} {'images':>8} {'input MB':>9} {'peak RssAnon':>14} {'seconds':>9}")
        small, large = (measure(work, rows, with_images=True) for rows in arguments.image_rows)
        text = measure(work, arguments.text_rows, with_images=False)
    print(
        f"{large - small:.0f} MB apart with images (limit {GROWTH_LIMIT_MB} MB); text alone at most {TEXT_LIMIT_MB} MB"
    )
    return 0 if large - small < GROWTH_LIMIT_MB and text < TEXT_LIMIT_MB else 1


def measure(work: Path, rows: int, *, with_images: bool) -> float:
    """Build a set, print a row of the table, and return the peak in MB."""
    source = work / "rows.json"
    draw_rows(source, rows, with_images=with_images)
    command = [sys.executable, "-m", "vlmdata", "build", source, "--out", work / "out", "--workers", "2"]
    began = time.monotonic()
    peak_mb = peak_of([*command, "--min-side", "32", "--no-keep-stage", "--overwrite", "--split", "val=0.1"]) / 1e6
    seconds = time.monotonic() - began
    size_mb = source.stat().st_size / 1e6
    print(
        f"{rows:>10,} {'yes' if with_images else 'no':>8} {size_mb:>9,.0f} {peak_mb:>11,.0f} MB {seconds:>9.1f}",
        flush=True,
    )
    return peak_mb


def draw_rows(path: Path, rows: int, *, with_images: bool) -> None:
    """One JSON array of questions and answers, each with a picture of its own where images are wanted."""
    with path.open("w", encoding="utf-8") as file, multiprocessing.Pool() as pool:
        file.write("[")
        pictures = pool.imap(draw_image, range(rows), chunksize=256) if with_images else iter([""] * rows)
        for i, picture in enumerate(pictures):
            row = {"question": f"What is item {i}?", "answer": f"It is number {i} of them all."}
            file.write(("," if i else "") + "\n" + json.dumps({**row, "image": picture} if with_images else row))
        file.write("\n]\n")


def draw_image(number: int) -> str:
    coarse = np.random.default_rng(number).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def peak_of(command: list[object]) -> int:
    """Highest sum of RssAnon over a command's process and its descendants, in bytes."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(part) for part in command], stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(anonymous_bytes(pid) for pid in descendants(process.pid)))
            time.sleep(0.1)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode(errors="replace"))
    return peak


if __name__ == "__main__":
    sys.exit(main())
