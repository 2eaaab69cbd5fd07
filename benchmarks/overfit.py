"""Does training look at the pictures? 32 rows that their texts cannot tell apart, learned by heart by a tiny model.

    python benchmarks/overfit.py SHARED_DATA [--set nlvr clothing] [--steps 200] [--out FOLDER]

`nlvr`: 16 statements, each with a picture of which it is true and one of which it is false. `clothing`: 32 photos of 8
kinds of garment under one fixed question. A tiny Qwen2.5-VL is trained on all of its weights on a CPU; afterwards it
answers the same rows with their own pictures, with those of rows of another answer (swapped), and with those of rows
drawn at random (shuffled). Exits with 1 unless every row is right with its own pictures, none is better than the most
frequent answer with swapped ones, and shuffled ones score within three standard deviations of chance.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STATEMENTS = 16
GARMENTS = ("T-Shirt", "Pants", "Longsleeve", "Shoes", "Shirt", "Outwear", "Dress", "Hat")
PHOTOS_A_GARMENT = 4
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with nlvr/ and clothing/")
    parser.add_argument("--set", nargs="+", choices=("nlvr", "clothing"), default=["nlvr", "clothing"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", default="1e-3")
    parser.add_argument("--out", type=Path, help="keep everything in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.out or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        columns = f"{'own pictures':>13} {'swapped':>8} {'shuffled':>9} {'most frequent':>14}"
        print(f"{'set':<10} {'rows':>5} {columns} {'steps':>6} {'s':>6}")
        held = [overfit(name, work / name, arguments) for name in arguments.set]
    return 0 if all(held) else 1


def overfit(name: str, work: Path, arguments: argparse.Namespace) -> bool:
    """One set from its files to its scores; prints a line."""
    work.mkdir(exist_ok=True)
    rows = pick_statements(arguments.shared) if name == "nlvr" else pick_photos(arguments.shared)
    with (work / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerows(rows)
    options = ["--instruction", "question", "--response", "answer", "--dedup", "none"]
    options += ["--min-side", "28", "--max-side", "224", "--image-root", str(arguments.shared.resolve())]
    run("vlmdata", "build", work / "rows.csv", "--out", work / "set", *options, "--overwrite")
    run("vlmtrain", "tiny", "qwen2.5-vl", work / "model", "--hidden-size", 64, "--layers", 2, "--vision-layers", 2)
    began = time.monotonic()
    schedule = ["--max-steps", arguments.steps, "--eval-steps", arguments.steps, "--batch-size", 8, "--grad-accum", 1]
    rates = ["--lr", arguments.lr, "--vision-lr", arguments.lr, "--schedule", "linear", "--warmup", 0.1]
    run(
        "vlmtrain", "fit", "--data", work / "set", "--model", work / "model", "--out", work / "run", "--method", "full",
        "--val-split", "train", *schedule, *rates, "--weight-decay", 0, "--no-report", "--overwrite",
    )  # fmt: skip
    seconds = time.monotonic() - began
    run("vlmtrain", "eval", work / "run", "--split", "train", "--metrics", "exact_match", "--swap-images")
    result = json.loads((work / "run" / "eval-train.json").read_text(encoding="utf-8"))
    own, swapped, majority = (
        part["scores"]["exact_match"]["value"] for part in (result, result["swapped"], result["majority"])
    )
    shuffled = score_shuffled(work)
    print(
        f"{name:<10} {len(rows):>5} {own:>13.3f} {swapped:>8.3f} {shuffled:>9.3f} {majority:>14.3f} "
        f"{arguments.steps:>6} {seconds:>6.0f}",
        flush=True,
    )
    chance_end = majority + 3 * math.sqrt(majority * (1 - majority) / len(rows))
    return own == 1.0 and swapped <= majority and shuffled <= chance_end


def score_shuffled(work: Path) -> float:
    """Share of right answers when each row is shown the pictures of a row drawn at random."""
    from vlmdata.shards import open_folder
    from vlmtrain.held_out import Questions, answer_limit, read_eval_rows
    from vlmtrain.inference import load_answering_model

    split = open_folder(work / "set").split("train")
    rows = read_eval_rows(split, limit=None, seed=0)
    donors = random.Random(0).sample(range(len(rows)), len(rows))
    model = load_answering_model(str(work / "run"))
    answers = model.answer(Questions(split, rows, donors), max_new_tokens=answer_limit(model, rows))
    return sum(answer in row.references for answer, row in zip(answers, rows, strict=True)) / len(rows)


def pick_statements(shared: Path) -> list[tuple[str, str, str]]:
    """`STATEMENTS` statements with a picture of which each is true and one of which it is false."""
    by_statement: dict[str, dict[str, str]] = {}
    for line in (shared / "nlvr" / "dev.subset.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        picture = shared / "nlvr" / "images" / f"dev-{row['identifier']}-0.png"
        by_statement.setdefault(row["sentence"], {}).setdefault(row["label"], str(picture.resolve()))
    both = [(statement, labels) for statement, labels in by_statement.items() if len(labels) == 2][:STATEMENTS]
    return [
        (labels[label], f"{statement}. True or false?", label) for statement, labels in both for label in sorted(labels)
    ]


def pick_photos(shared: Path) -> list[tuple[str, str, str]]:
    """`PHOTOS_A_GARMENT` photos of each of `GARMENTS`, under one question."""
    chosen: dict[str, list[str]] = {garment: [] for garment in GARMENTS}
    with (shared / "clothing" / "images.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            photo = shared / "clothing" / "images" / f"{row['image']}.jpg"
            if len(chosen.get(row["label"], [""] * PHOTOS_A_GARMENT)) < PHOTOS_A_GARMENT and photo.is_file():
                chosen[row["label"]].append(str(photo.resolve()))
    return [(photo, "Which garment is this?", label) for label, photos in chosen.items() for photo in photos]


def run(program: str, *arguments: object) -> None:
    command = [sys.executable, "-m", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
