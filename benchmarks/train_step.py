"""A training step of vlmtrain against the notebooks' recipe, offline, on one GPU or several.

Makes a model of a real shape with random weights and a set of pictures, then trains on the same rows in the same order,
with the same pixels, masks, global batch and adapters: the notebooks' script (benchmarks/notebook_recipe.py) and
`vlmtrain fit` with its defaults. Each run is a process of its own. Those of one shape and size share a GPU, get ready
side by side and are timed by turns (benchmarks/turns.py), so that no step that counts has a neighbour.

    python benchmarks/train_step.py --work DIR [--shapes qwen2.5-vl-3b] [--sizes 512x384 1000x750]

Prints a table and writes DIR/train_step.json. Step time is from log to log, the median of the steps done alone.

Pixels are equal at sizes that the recipe's collator leaves alone. It rounds a picture to multiples of twice the patch
before the processor sees it, with families too whose processor would not: sides that are multiples of 224 px suit all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from full_size import build_set, make_full_size, make_tiny_of
from shapes import SHAPES
from step_recipes import Run, counted, counted_numbers, measure, measure_held_out, median_seconds, read_config
from turns import take_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    helps = f"{', '.join(SHAPES)}; NAME@SIZE is run at that size alone"
    parser.add_argument("--shapes", nargs="+", default=["qwen2.5-vl-3b"], help=helps)
    parser.add_argument("--sizes", nargs="+", default=["512x384", "1000x750"])
    helps = """notebook, guide, vlmtrain, or vlmtrain with options, as in "vlmtrain --profile-steps 2"; settings of the
    environment may come first, as in "PYTHONPATH=OTHER vlmtrain"; NAME@SIZE is run at that size alone"""
    parser.add_argument("--recipes", nargs="+", default=["notebook", "vlmtrain"], help=helps)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-steps", type=int, default=10, help="steps that are not timed: what compiles does so")
    parser.add_argument("--steps-a-turn", type=int, default=5)
    helps = "cases (a shape at a size) that are ready at once; one for each GPU when unset. More need the memory for it"
    parser.add_argument("--at-once", type=int, help=helps)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--load-in", default="16bit")
    parser.add_argument("--gpu-memory-gb", type=float, help="most that each run may take")
    parser.add_argument("--ready-limit", type=float, default=600, help="seconds that a run may take to get warm")
    parser.add_argument("--limit", type=float, default=900, help="seconds that the cases run at once may take")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare rows for vlmtrain")
    parser.add_argument("--held-out", type=int, default=0, help="rows on which the trained adapters are compared")
    options = parser.parse_args()
    cases = cases_of(options)
    if unknown := {shape for shape, _ in cases} - set(SHAPES):
        parser.error(f"unknown shapes: {', '.join(sorted(unknown))}")
    options.work.mkdir(parents=True, exist_ok=True)
    rate, gpus = measure_matrix_rate()
    print(f"matrix product, bf16: {rate / 1e12:.0f} TFLOP/s; {gpus} GPUs", flush=True)
    models = make_models(list(dict.fromkeys(shape for shape, _ in cases)), options.work, gpus)
    at_once = options.at_once or gpus
    results: list[dict[str, Any]] = []
    for start in range(0, len(cases), at_once):
        some = {case: number % gpus for number, case in enumerate(cases[start : start + at_once])}
        for result in run_cases(some, models, options):
            results.append({**result, "matrix_rate": rate})
        (options.work / "train_step.json").write_text(json.dumps(results, indent=1) + "\n")
        for case in some:
            compared = [line for line in results if (line["shape"], line["size"]) == case]
            if compared:
                print_table(compared)
                draw_losses(compared, options.work / f"losses-{'-'.join(case)}-{options.load_in}.png")


def cases_of(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Shapes and sizes, each once."""
    named = (each.partition("@") for each in options.shapes)
    return list(
        dict.fromkeys((shape, size) for shape, _, only in named for size in ([only] if only else options.sizes))
    )


def make_models(shapes: list[str], work: Path, gpus: int) -> dict[str, Path]:
    """The models, each made by a process that leaves nothing on the GPU."""
    folders = {shape: work / shape for shape in shapes}
    for shape in shapes:
        make_tiny_of(shape, work)  # two shapes of a family share it
    with ProcessPoolExecutor(max_workers=gpus, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(make_full_size, folders, folders.values()))
    return folders


def run_cases(
    cases: dict[tuple[str, str], int], models: dict[str, Path], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Runs the recipes of some cases, by turns.

    Args:
        cases: Shape and size, and the number of the GPU.
        models: Folders by shape.
        options: Of the script.

    Returns:
        What each recipe left; nothing of those that failed, which are named.
    """
    runs: list[tuple[tuple[str, str], Run]] = []
    for (shape, size), gpu in cases.items():
        data = build_data(size, options)
        for recipe, _, only in (each.partition("@") for each in options.recipes):
            if only not in ("", size):
                continue
            words = re.sub(r"[^\w.]+", "-", recipe).strip("-")
            slug = f"{shape}-{size}-{options.load_in}-{words}"
            runs.append(((shape, size), Run(recipe, models[shape], data, options.work / slug, options, gpu=gpu)))
    programs = [run.program for _, run in runs]
    take_turns(
        programs,
        warm_steps=options.warm_steps,
        steps_a_turn=options.steps_a_turn,
        ready_limit_s=options.ready_limit,
        limit_s=options.limit,
    )
    results = []
    for (shape, size), run in runs:
        try:
            result = run.collect()
            if options.held_out:
                result["held_out_loss"] = measure_held_out(run)
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(f"{run.program.name}: not compared: {error}", flush=True)
            continue
        results.append({**result, "shape": shape, "size": size, **count_work(run.model, run.data)})
    return results


def build_data(size: str, options: argparse.Namespace) -> Path:
    """The set to train on, of pictures of a size."""
    sizes = mixed_sizes() if size == "mixed" else [tuple(map(int, size.split("x")))]
    rows, held_out = options.batch_size * options.steps, options.held_out
    return build_set(options.work / f"set-{size}-{rows}-{held_out}", rows=rows, sizes=sizes, held_out=held_out)


def mixed_sizes() -> list[tuple[int, int]]:
    """Sizes between 300 and 1000 px a side, as sets of photographs and documents have them."""
    import numpy as np

    draw = np.random.default_rng(1)
    return [(int(w), int(h)) for w, h in draw.integers(300, 1001, (61, 2))]


def draw_losses(results: list[dict[str, Any]], out: Path) -> None:
    """The losses of the recipes step by step, and how far each lies from the first recipe's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, apart) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), height_ratios=(3, 2))
    base = [step["loss"] for step in results[0]["steps"]]
    for result in results:
        values = [step["loss"] for step in result["steps"]]
        steps = range(1, len(values) + 1)
        losses.plot(steps, values, label=result["recipe"], linewidth=1)
        pairs = zip(values, base, strict=False)
        apart.plot(steps, [100 * (value - first) / first for value, first in pairs], linewidth=1)
    losses.set(ylabel="loss", title=f"{results[0]['shape']}, {results[0]['size']}, {results[0]['load_in']}")
    losses.legend()
    apart.set(ylabel=f"% from {results[0]['recipe']}", xlabel="step")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def measure_matrix_rate() -> tuple[float, int]:
    """Operations a second of a large bf16 matrix product here, the ceiling of utilisation; and the number of GPUs."""
    import torch

    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(50):
        a @ b
    torch.cuda.synchronize()
    rate = 50 * 2 * size**3 / (time.perf_counter() - began)
    del a, b
    torch.cuda.empty_cache()
    return rate, torch.cuda.device_count()


def count_work(model: Path, data: Path) -> dict[str, float]:
    """Tokens of a row on average, and the operations that it asks for.

    Operations are twice the weights of the blocks a token forward, and once more for gradients: base weights have no
    gradients of their own; recomputation, padding, adapters, the output head and attention scores are not counted.
    """
    from vlmtrain.model_shape import read_shape

    lengths, shape = measure(model, data), read_shape(read_config(model))
    weights = {
        part: sum(layer.inputs * layer.outputs for block in shape.stack(part) for layer in block.linears)
        for part in ("language", "vision")
    }
    tokens, patches = float(lengths.tokens.mean()), float(lengths.patches.mean())
    return {"row_tokens": tokens, "row_flops": 4 * (weights["language"] * tokens + weights["vision"] * patches)}


def print_table(results: list[dict[str, Any]]) -> None:
    """One line a recipe. Where a recipe's steps have other rows, they are compared by rows, and losses are not."""
    first = results[0]
    print(f"\n{first['shape']}, {first['size']}, adapters on everything, {len(first['steps'])} steps")
    base = next((line for line in results if line["recipe"] == "notebook"), first)
    table = [
        ["recipe", "step s", "spread", "the same steps s", "tokens/s", "waiting", "peak GB", "of peak rate", "speed-up"]
    ]
    table[0] += ["loss differs", *(["held-out"] if "held_out_loss" in first else [])]
    for line in results:
        times = sorted(step["step_seconds"] for step in counted(line))
        a_row, base_row = (median_seconds(counted(each)) / each["rows"] for each in (line, base))
        both = sorted(set(counted_numbers(line)) & set(counted_numbers(base)))
        table.append(
            [
                f"{line['recipe']}, {line['load_in']}, {line['rows']} rows",
                f"{statistics.median(times):.3f}",
                f"{times[0]:.3f} to {times[-1]:.3f}",
                f"{sum(line['steps'][number]['step_seconds'] for number in both):.1f} in {len(both)}",
                f"{line['row_tokens'] / a_row:.0f}",
                describe_waiting(line),
                f"{line['peak_memory_gb']:.1f}",
                f"{line['row_flops'] / a_row / line['matrix_rate']:.1%}",
                f"{base_row / a_row:.2f}x",
                describe_difference(line, base),
                *([f"{line['held_out_loss']:.4f}"] if "held_out_loss" in line else []),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    for line in results:
        print(f"{line['recipe']}: {'; '.join(line['attention'])}", flush=True)


def describe_waiting(line: dict[str, Any]) -> str:
    """Share of a step that went into waiting for rows, where the recipe measures it."""
    steps = [step for step in counted(line) if "waiting_seconds" in step]
    if not steps:
        return "-"
    return f"{statistics.median(step['waiting_seconds'] / step['step_seconds'] for step in steps):.1%}"


def describe_difference(line: dict[str, Any], base: dict[str, Any]) -> str:
    """The largest difference of a step's loss, where the steps have the same rows, which options can put in others."""
    reordered = any(option in line["recipe"] for option in ("--batching", "--batch-tokens", "--micro-batch", "--seed"))
    if line["rows"] != base["rows"] or reordered:
        return "-"
    pairs = zip(line["steps"], base["steps"], strict=False)
    return f"{max(abs(a['loss'] - b['loss']) / b['loss'] for a, b in pairs):.3%}"


if __name__ == "__main__":
    main()
