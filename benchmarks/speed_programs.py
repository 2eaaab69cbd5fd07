"""The programs that build_speed compares with `vlmdata build`, each a command over a folder of `speed_sets`.

python benchmarks/speed_programs.py decode SET
python benchmarks/speed_programs.py recipe SET OUT
python benchmarks/speed_programs.py list-urls SET FILE
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from PIL import Image

PROCESSES = 2
MIN_SIDE, MAX_SIDE = 300, 1000


def list_images(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def decode_image(path: Path) -> int:
    with Image.open(path) as image:
        image.load()
        return image.width * image.height


def decode_all(folder: Path) -> None:
    """The ceiling: every file read and decoded, and nothing else."""
    with multiprocessing.Pool(PROCESSES) as pool:
        pixels = sum(pool.imap_unordered(decode_image, list_images(folder), chunksize=16))
    print(f"{pixels / 1e6:.0f} Mpx")


def run_recipe(folder: Path, out: Path) -> None:
    """What notebooks do: map over a datasets.Dataset with Pillow and imagehash, filter, save_to_disk."""
    import datasets

    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("question", "answer")}
    table["image"] = [str(folder / row["image"]) for row in rows]
    data = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    data = data.map(prepare_row, num_proc=PROCESSES, remove_columns=["question", "answer"])
    seen: set[str] = set()
    fresh = [i for i, code in enumerate(data["phash"]) if not (code in seen or seen.add(code))]
    data.select(fresh).remove_columns("phash").save_to_disk(str(out), num_proc=PROCESSES)


def prepare_row(row: dict[str, Any]) -> dict[str, Any]:
    import imagehash

    image = row["image"].convert("RGB")
    scale = min(1.0, MAX_SIDE / max(image.size))
    if min(image.size) * scale < MIN_SIDE:
        scale = min(MIN_SIDE / min(image.size), MAX_SIDE / max(image.size))
    if scale != 1.0:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": row["question"]}]},
        {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]},
    ]
    return {"image": image, "messages": messages, "phash": str(imagehash.phash(image))}


def list_urls(folder: Path, target: Path) -> None:
    """A list of file:// addresses for img2dataset, which spares it the network."""
    target.write_text("".join(f"{path.resolve().as_uri()}\n" for path in list_images(folder)), encoding="utf-8")


if __name__ == "__main__":
    verb, *places = sys.argv[1:]
    {"decode": decode_all, "recipe": run_recipe, "list-urls": list_urls}[verb](*map(Path, places))
