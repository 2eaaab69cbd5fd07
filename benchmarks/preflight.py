"""How long preflight takes over a large set, and whether the lengths it foresees are the processor's.

    python benchmarks/preflight.py --out DIR [--rows 100000] [--families qwen2.5-vl gemma3] [--verified 500]

Makes DIR/set once (one-coloured pictures of 48 sizes; questions and answers of 5 to 120 words, a third of the rows with
several turns, a tenth with two pictures), then measures every row for each family's tiny model, whose processor and
chat template are of the real kind; its vocabulary is small, so that texts take about twice the tokens of a real one.
The lengths of a random sample are compared with what the processor makes of the decoded rows. Writes
DIR/preflight.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = (
    "the receipt shows a total of twelve euros and forty cents paid by card in the evening while rain falls on "
    "parked cars left and right of an old bridge which carries two narrow lanes over the river near the station"
).split()
SIZES = [(width, height) for width in (320, 480, 500, 640, 750, 1000) for height in range(240, 1040, 100)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--families", nargs="+", default=["qwen2.5-vl", "gemma3"])
    parser.add_argument("--verified", type=int, default=500)
    arguments = parser.parse_args()
    folder = arguments.out / f"set-{arguments.rows}"
    if not (folder / "manifest.json").is_file():
        make_set(folder, arguments.rows)
    results = [measure(family, folder, arguments.out, arguments.verified) for family in arguments.families]
    (arguments.out / "preflight.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for result in results:
        print(json.dumps(result))
    return 0 if all(result["exact"] == result["verified"] for result in results) else 1


def make_set(folder: Path, rows: int) -> None:
    """Writes a built folder of made-up conversations."""
    from vlmdata.manifest import Counts, Manifest, write_manifest
    from vlmdata.set_files import write_set_files
    from vlmdata.shard_writer import SplitWriter

    with SplitWriter(folder, "train") as writer:
        batch = []
        for row in make_rows(rows):
            batch.append(row)
            if len(batch) == 256:
                writer.write_rows(batch)
                batch = []
        writer.write_rows(batch)
        entries = {"train": writer.close()}
    write_set_files(folder, entries)
    write_manifest(folder, Manifest(splits=entries, counts=Counts(read=rows, kept=rows), fingerprint="made"))


def make_rows(count: int) -> Iterator[Any]:
    """Conversations about one-coloured pictures, the same for the same count."""
    from PIL import Image

    pictures = {}
    for size in SIZES:
        buffer = io.BytesIO()
        Image.new("RGB", size, (200, 40, 40)).save(buffer, "PNG", compress_level=9)
        pictures[size] = buffer.getvalue()
    rng = random.Random(count)

    def say(role: str, images: int, words: int) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image", "text": None}] * images
        return {"role": role, "content": [*parts, {"type": "text", "text": " ".join(rng.choices(WORDS, k=words))}]}

    for index in range(count):
        sizes = rng.choices(SIZES, k=2 if index % 10 == 0 else 1)
        messages = [say("user", len(sizes), rng.randint(5, 40)), say("assistant", 0, rng.randint(1, 120))]
        for _ in range(2 if index % 3 == 0 else 0):
            messages += [say("user", 0, rng.randint(3, 20)), say("assistant", 0, rng.randint(1, 40))]
        info = [
            {
                **{"original_width": width, "original_height": height, "width": width, "height": height},
                **{"format": "PNG", "action": "stored", "window": None, "frame": None, "salvaged": False},
                **{"note": None, "pixel_hash": f"{index:032x}", "phash": f"{index:064x}"},
            }
            for width, height in sizes
        ]
        yield {
            "id": f"row-{index}",
            "messages": messages,
            "images": [{"bytes": pictures[size], "path": None} for size in sizes],
            "references": [messages[-1]["content"][0]["text"]],
            "objects": None,
            "image_info": info,
            "meta": "{}",
            "source": f"made:{index}",
        }


def measure(family: str, folder: Path, out: Path, verified: int) -> dict[str, Any]:
    """Times preflight over the whole set, and compares a random sample with the processor."""
    from vlmdata.shards import open_folder
    from vlmtrain.lengths import measure_lengths
    from vlmtrain.preflight import differing_lengths
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.rows import open_rows, sample_indices
    from vlmtrain.source import find_model
    from vlmtrain.tiny import make_tiny

    model = out / family
    if not (model / "config.json").is_file():
        make_tiny(family, model)
    source = find_model(str(model))
    chat = load_chat_format(source, load_processor(source))
    began, cpu_before = time.monotonic(), _cpu_seconds()
    split = open_folder(folder).split("train")
    lengths = measure_lengths(split, chat, source.family)
    seconds, cpu_seconds = time.monotonic() - began, _cpu_seconds() - cpu_before
    sample = sample_indices(len(split), verified, 0)
    wrong = differing_lengths(open_rows(split), lengths, sample, chat)
    return {
        "family": family,
        "rows": len(split),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "rows_per_second": round(len(split) / seconds),
        "text_tokens_per_row": round(float((lengths.tokens - lengths.image_tokens).mean()), 1),
        "cores": len(os.sched_getaffinity(0)),
        "exact": len(sample) - len(wrong),
        "verified": len(sample),
    }


def _cpu_seconds() -> float:
    """Of this process and of those it waited for: on a busy machine, what the wall clock would show on a free one."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    raise SystemExit(main())
