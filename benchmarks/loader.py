"""Images a second of the input path alone: shards to batches, as `vlmtrain fit` has them, without a model's work.

    python benchmarks/loader.py [--family qwen2.5-vl] [--size 512x384] [--rows 512] [--workers 0 1 2]

Decoding, resizing, cutting into patches, rendering, tokenising, masking, packing; the processor is the family's own.
Needs no GPU. Prints a table; decoding alone, in one process, is the ceiling of one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many threads as processes, and no more

from full_size import build_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="qwen2.5-vl")
    parser.add_argument("--size", default="512x384")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        data = build_set(Path(folder), rows=options.rows, sizes=[(width, height)])
        rows, collate = open_input(data, options.family, Path(folder) / "model")
        began = time.perf_counter()
        for index in range(len(rows)):
            for image in rows[index]["images"]:
                image.load()
        decoding = len(rows) / (time.perf_counter() - began)
        print(f"{options.family}, {options.size}, {len(rows)} pictures, batches of {options.batch_size}")
        print(f"{'':24} {'pictures/s':>11} {'of decoding':>12}")
        print(f"{'decoding alone':24} {decoding:11.0f} {'100 %':>12}")
        for workers in options.workers:
            speed = measure(rows, collate, options.batch_size, workers)
            print(f"{f'batches, {workers} workers':24} {speed:11.0f} {speed / decoding:12.0%}")


def open_input(data: Path, family: str, model_folder: Path) -> tuple[Any, Any]:
    """The rows of a built folder and the collator that training would use on them."""
    import torch
    from transformers import AutoModelForImageTextToText

    from vlmdata.shards import open_folder
    from vlmtrain.collator import VisionCollator
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.rows import open_rows
    from vlmtrain.source import find_model
    from vlmtrain.speed.packing import PackedCollator, can_pack
    from vlmtrain.speed.vision_inputs import VisionInputs
    from vlmtrain.tiny import make_tiny

    source = find_model(str(make_tiny(family, model_folder)))
    chat = load_chat_format(source, load_processor(source))
    chat.processor.tokenizer.padding_side = "right"
    collate: Any = VisionCollator(chat, dtype=torch.bfloat16)
    if can_pack(source.config["model_type"]):
        model = AutoModelForImageTextToText.from_pretrained(source.name)
        collate = VisionInputs(PackedCollator(collate, model), model.config.vision_config)
    return open_rows(open_folder(data).split("train")), collate


def measure(rows: Any, collate: Any, batch_size: int, workers: int) -> float:
    """Pictures a second over one pass; the first batch, for which workers start, is not counted."""
    from torch.utils.data import DataLoader

    loader = DataLoader(rows, batch_size=batch_size, collate_fn=collate, num_workers=workers)
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
    counted = sum(len(batch["image_grid_thw"]) if "image_grid_thw" in batch else batch_size for batch in batches)
    return counted / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
