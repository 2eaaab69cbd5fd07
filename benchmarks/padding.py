"""Padding of batches of pictures of mixed sizes, by family: in random order, and as `vlmtrain fit` arranges rows.

    python benchmarks/padding.py [--rows 512] [--batch-size 8]

Draws pictures of 300 to 1000 px a side with answers of 2 to 60 words, measures every row with each family's processor
(of a tiny model, which cuts pictures as the real ones do), and plans an epoch. Needs no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from full_size import build_set
from train_step import mixed_sizes


def main() -> None:
    from vlmdata.families import FAMILIES
    from vlmdata.shards import open_folder
    from vlmtrain.lengths import measure_lengths
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.source import find_model
    from vlmtrain.speed.batches import BatchPlan
    from vlmtrain.speed.packing import can_pack

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    print("| family | tokens of a row, least, median, most | random order | as arranged | and rounded up | how |")
    print("|---|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = build_set(Path(folder) / "set", rows=options.rows, sizes=mixed_sizes(), words=(2, 60))
        split = open_folder(data).split("train")
        for name, family in FAMILIES.items():
            model = Path(folder) / name
            command = [sys.executable, "-m", "vlmtrain", "tiny", name, str(model)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            source = find_model(str(model))
            tokens = measure_lengths(split, load_chat_format(source, load_processor(source)), family).tokens
            packed = can_pack(source.config["model_type"])
            plain = BatchPlan(lengths=tokens, rows=options.batch_size, passes=1, seed=3407)
            arranged = dataclasses.replace(plain, packed=packed, by_length=not packed)
            rounded = dataclasses.replace(arranged, rounded=True)
            ordered = sorted(tokens.tolist())
            print(
                f"| {name} | {ordered[0]}, {ordered[len(ordered) // 2]}, {ordered[-1]} | {plain.padding():.1%} "
                f"| {arranged.padding():.1%} | {rounded.padding():.1%} | {'packed' if packed else 'length'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
