"""Losses and step times of `vlmtrain fit` on one and on several GPUs, at the same global batch.

    python benchmarks/several_gpus.py [--gpus 1 2] [--global-batch 16] [--batch-size 2] [--steps 20]
        [--backend unsloth] [--method lora] [--load-in 16bit] [--family qwen2.5-vl] [--model FOLDER] [--out FOLDER]

Draws a set of numbered pictures, makes a model of the family (or takes `--model`), and runs `fit` once for each number
of GPUs with `--grad-accum` chosen so that a step has the same rows. Prints the losses side by side, and for each run
the median time of a step without the first three, rows a second, and the speed-up. Exits with 1 when losses are more
than 1 % apart (2 % in 4 bit), or evaluation losses. Without a GPU the processes share the CPU: slow, but it runs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

WARM_UP_STEPS = 3
ALLOWED = {"4bit": 0.02}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--side", type=int, default=448, help="pictures are squares of this side, in pixels")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--load-in", default="auto")
    parser.add_argument("--family", default="qwen2.5-vl")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--model", help="a model folder or hub id in place of a drawn-up one")
    parser.add_argument("--fit", default="", help='further options of fit, as in --fit "--batching plain"')
    parser.add_argument("--out", type=Path, help="keep sets, models and runs in this folder")
    arguments = parser.parse_args()
    uneven = [n for n in arguments.gpus if arguments.global_batch % (arguments.batch_size * n)]
    if uneven:
        parser.error(f"--global-batch is not a multiple of --batch-size × {uneven[0]} GPUs")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.out or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, arguments)
        logs = dict(sorted({count: fit(work, count, arguments) for count in arguments.gpus}.items()))
    show_losses(logs)
    show_times(logs, arguments.global_batch)
    return compare(logs, ALLOWED.get(arguments.load_in, 0.01))


def prepare(work: Path, arguments: argparse.Namespace) -> None:
    """The set and, without `--model`, a model of the family."""
    if not (work / "set" / "manifest.json").exists():
        draw_set(work / "raw", arguments.rows, arguments.side)
        size = ["--size", f"{arguments.side}x{arguments.side}", "--dedup", "none", "--split", "val=0.1"]
        run("vlmdata", "build", work / "raw" / "rows.csv", "--out", work / "set", *size,
            "--instruction", "Which number is written here?", "--response", "answer")  # fmt: skip
    if not arguments.model and not (work / "model" / "config.json").exists():
        sizes = ["--hidden-size", arguments.hidden_size, "--layers", arguments.layers]
        run("vlmtrain", "tiny", arguments.family, work / "model", *sizes)


def draw_set(folder: Path, rows: int, side: int) -> None:
    """Pictures of a number on a coloured ground; answers of one and of several words."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "answer"])
        for row in range(rows):
            number = rng.randrange(1000)
            picture = Image.new("RGB", (side, side), tuple(rng.randrange(128, 256) for _ in range(3)))
            ImageDraw.Draw(picture).text((side // 4, side // 3), str(number), fill="black", font_size=side // 4)
            picture.save(folder / f"{row}.png")
            # so that a mean of the processes' means would differ from the mean over all tokens
            writer.writerow([f"{row}.png", f"The number is {number}, I am sure." if row % 3 else str(number)])


def fit(work: Path, gpus: int, arguments: argparse.Namespace) -> list[dict]:
    """One run; its log."""
    passes = arguments.global_batch // (arguments.batch_size * gpus)
    out = work / f"run-{gpus}"
    run(
        "vlmtrain", "fit", "--data", work / "set", "--model", arguments.model or work / "model", "--out", out,
        "--gpus", gpus, "--batch-size", arguments.batch_size, "--grad-accum", passes, "--max-steps", arguments.steps,
        "--eval-steps", arguments.steps, "--backend", arguments.backend, "--method", arguments.method,
        "--load-in", arguments.load_in, "--lr", "1e-3", "--warmup", 0, "--no-report", "--overwrite",
        *shlex.split(arguments.fit),
    )  # fmt: skip
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def run(program: str, *options: object) -> None:
    command = [sys.executable, "-m", program, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def show_losses(logs: dict[int, list[dict]]) -> None:
    """A line a step, a column a run, with the distance of the furthest from the first."""
    print(f"{'step':>6}" + "".join(f"{f'{count} GPU':>12}" for count in logs) + f"{'apart':>10}")
    for key, name in (("loss", ""), ("eval_loss", " val")):
        series = [{log["step"]: log[key] for log in run if key in log} for run in logs.values()]
        for step, first in series[0].items():
            values = [each[step] for each in series]
            apart = max(abs(value - first) / first for value in values)
            print(f"{f'{step}{name}':>6}" + "".join(f"{value:>12.5f}" for value in values) + f"{apart:>10.3%}")


def show_times(logs: dict[int, list[dict]], global_batch: int) -> None:
    """Median step, rows a second, speed-up over the first run."""
    print(f"\n{'GPUs':>6}{'s a step':>12}{'rows/s':>12}{'speed-up':>12}")
    base = None
    for count, run in logs.items():
        ends = [log["seconds"] for log in run if "loss" in log]
        ends = ends[WARM_UP_STEPS:] if len(ends) > 2 * WARM_UP_STEPS else ends
        step = statistics.median(end - begin for begin, end in itertools.pairwise(ends))
        base = base or step
        print(f"{count:>6}{step:>12.3f}{global_batch / step:>12.1f}{base / step:>12.2f}")


def compare(logs: dict[int, list[dict]], allowed: float) -> int:
    """1 when a loss of any run is further from the first run's than allowed."""
    runs = list(logs.values())
    apart = [
        abs(other[key] - log[key]) / log[key]
        for run in runs[1:]
        for log, other in zip(runs[0], run, strict=True)
        for key in ("loss", "eval_loss")
        if key in log
    ]
    if apart and max(apart) > allowed:
        print(f"losses are up to {max(apart):.2%} apart, more than {allowed:.0%}")
        return 1
    print(f"losses are at most {max(apart, default=0):.3%} apart (limit {allowed:.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
