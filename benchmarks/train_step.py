"""A training step of vlmtrain against the notebooks' recipe, on one GPU, offline.

Makes a model of a real shape with random weights and a set of pictures, then trains on the same rows in the same order,
with the same pixels, masks, global batch and adapters: the notebooks' script (benchmarks/notebook_recipe.py) and
`vlmtrain fit` with its defaults. Each run is a process of its own; recipes take turns.

    python benchmarks/train_step.py --work DIR [--shapes qwen2.5-vl-3b] [--sizes 512x384 1000x750] [--repeats 1]

Prints a table and writes DIR/train_step.json. Step time is from log to log, the median of the steps after the tenth.

Pixels are equal at sizes that the recipe's collator leaves alone. It rounds a picture to multiples of twice the patch
before the processor sees it, with families too whose processor would not: sides that are multiples of 224 px suit all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from full_size import build_set, make_full_size
from shapes import SHAPES

WARM_STEPS = 10
WARMUP_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["qwen2.5-vl-3b"], choices=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", default=["512x384", "1000x750"])
    helps = 'notebook, guide, vlmtrain, or vlmtrain with options, as in "vlmtrain --profile-steps 2"'
    parser.add_argument("--recipes", nargs="+", default=["notebook", "vlmtrain"], help=helps)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--load-in", default="16bit")
    parser.add_argument("--gpu-memory-gb", type=float)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit", type=float, default=900, help="seconds that a recipe may take")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare rows for vlmtrain")
    parser.add_argument("--held-out", type=int, default=0, help="rows on which the trained adapters are compared")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rate = measure_matrix_rate()
    print(f"matrix product, bf16: {rate / 1e12:.0f} TFLOP/s", flush=True)
    results = []
    for shape in options.shapes:
        model = make_full_size(shape, options.work / shape)
        for size in options.sizes:
            sizes = mixed_sizes() if size == "mixed" else [tuple(map(int, size.split("x")))]
            rows, held_out = options.batch_size * options.steps, options.held_out
            data = build_set(options.work / f"set-{size}-{rows}-{held_out}", rows=rows, sizes=sizes, held_out=held_out)
            for repeat in range(options.repeats):
                for recipe in options.recipes:
                    slug = "".join(recipe.split()).replace("--", "-")
                    out = options.work / f"{shape}-{size}-{options.load_in}-{slug}-{repeat}"
                    result = run_recipe(recipe, model, data, out, options)
                    result |= {"shape": shape, "size": size, "repeat": repeat, "matrix_rate": rate}
                    result |= count_work(model, data)
                    results.append(result)
                    (options.work / "train_step.json").write_text(json.dumps(results, indent=1) + "\n")
                    compared = [line for line in results if (line["shape"], line["size"]) == (shape, size)]
                    print_table(compared)
                    draw_losses(compared, options.work / f"losses-{shape}-{size}-{options.load_in}.png")


def mixed_sizes() -> list[tuple[int, int]]:
    """Sizes between 300 and 1000 px a side, as sets of photographs and documents have them."""
    import numpy as np

    draw = np.random.default_rng(1)
    return [(int(w), int(h)) for w, h in draw.integers(300, 1001, (61, 2))]


def run_recipe(recipe: str, model: Path, data: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a recipe in a process of its own and returns its steps."""
    began = time.monotonic()
    name, *extra = recipe.split()
    result: dict[str, Any] = RECIPES[name](model, data, out, options, *extra)
    if options.held_out:
        result["held_out_loss"] = measure_held_out(Path(f"{out}-adapter"), data, options)
    result |= {"recipe": recipe, "whole_seconds": time.monotonic() - began}
    result = {"load_in": options.load_in, "rows": options.batch_size, **result}
    result["attention"] = read_attention(Path(f"{out}.log"))
    result["profiled"] = "--profile-steps" in extra
    return result


def run_vlmtrain(model: Path, data: Path, out: Path, options: argparse.Namespace, *extra: object) -> dict[str, Any]:
    """`vlmtrain fit` with its defaults; the schedule is that of the notebooks."""
    arguments = ["--data", data, "--model", model, "--out", out, "--overwrite", "--backend", "unsloth"]
    arguments += ["--load-in", options.load_in, "--max-steps", options.steps, "--lr", 2e-4, "--schedule", "linear"]
    arguments += ["--warmup", WARMUP_STEPS / options.steps, "--batch-size", options.batch_size, "--grad-accum", 1]
    arguments += ["--workers", options.workers, "--eval-steps", options.steps, "--no-report", *extra]
    if options.gpu_memory_gb:
        arguments += ["--gpu-memory-gb", options.gpu_memory_gb]
    run([sys.executable, "-m", "vlmtrain", "fit", *arguments], Path(f"{out}.log"), options.limit)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    if options.held_out:
        shutil.copytree(sorted((out / "checkpoints").glob("checkpoint-*"))[-1], f"{out}-adapter", dirs_exist_ok=True)
    return {"steps": steps, "peak_memory_gb": max(step["peak_memory_gb"] for step in steps)}


def run_notebook(
    model: Path, data: Path, out: Path, options: argparse.Namespace, *, batch_size: int = 0, passes: int = 1
) -> dict[str, Any]:
    """The notebooks' script on the rows in the order in which `vlmtrain fit` takes them."""
    order = out.parent / "order.json"
    order.write_text(json.dumps(order_of(data, options.batch_size)), encoding="utf-8")
    script = Path(__file__).parent / "notebook_recipe.py"
    arguments = ["--model", model, "--data", data, "--out", f"{out}.json", "--max-steps", options.steps]
    arguments += ["--order", order, "--batch-size", batch_size or options.batch_size, "--grad-accum", passes]
    arguments += ["--instruction-part", markers(model)[0], "--response-part", markers(model)[1]]
    if options.load_in == "4bit":
        arguments.append("--load-in-4bit")
    if options.gpu_memory_gb:
        arguments += ["--gpu-memory-gb", options.gpu_memory_gb]
    if options.held_out:
        arguments += ["--adapter", f"{out}-adapter"]
    run([sys.executable, script, *arguments], Path(f"{out}.log"), options.limit)
    result: dict[str, Any] = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    return result


def run_guide(model: Path, data: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The guides' own numbers, one row at a time and four passes a step, in 4 bit; half the global batch."""
    guide = argparse.Namespace(**{**vars(options), "load_in": "4bit"})
    return {**run_notebook(model, data, out, guide, batch_size=1, passes=4), "load_in": "4bit", "rows": 4}


RECIPES = {"notebook": run_notebook, "guide": run_guide, "vlmtrain": run_vlmtrain}


def run(command: list[Any], log: Path, limit_s: float) -> None:
    """Runs a command, its output in a file of which the end is shown."""
    print("$", " ".join(str(part) for part in command[1:]), flush=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            subprocess.run(
                [str(part) for part in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                check=True,
                timeout=limit_s,
            )
        finally:
            file.flush()
            print("\n".join(log.read_text(encoding="utf-8").splitlines()[-12:]), flush=True)


def measure_held_out(adapter: Path, data: Path, options: argparse.Namespace) -> float:
    """Mean loss of a supervised token over the held-out rows, by the reference backend, whoever trained the adapter."""
    out = adapter.parent / f"{adapter.name}-held-out.jsonl"
    arguments = [
        "eval",
        adapter,
        "--data",
        data,
        "--rank",
        "--backend",
        "transformers",
        "--out",
        out,
        "--load-in",
        "16bit",
    ]
    run([sys.executable, "-m", "vlmtrain", *arguments], Path(f"{adapter}-held-out.log"), options.limit)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)


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


def order_of(data: Path, batch_size: int) -> list[int]:
    """The order of `vlmtrain fit` in its first epoch, by the seed that it has by itself."""
    import numpy as np

    from vlmdata.shards import open_folder
    from vlmtrain.speed.batches import BatchPlan

    rows = open_folder(data).split("train").num_rows
    plan = BatchPlan(lengths=np.ones(rows, dtype=np.int64), rows=batch_size, passes=1, seed=3407, packed=True)
    return [row for rows in plan.arrange(0) for row in rows]


def markers(model: Path) -> tuple[str, str]:
    """The texts with which the family's template opens a user's and an assistant's turn."""
    from vlmdata.families import find_family

    family = find_family(json.loads((model / "config.json").read_text(encoding="utf-8")))
    assert family is not None
    return family.instruction_part, family.response_part


def measure_matrix_rate() -> float:
    """Operations a second of a large bf16 matrix product here: the ceiling that utilisation is a share of."""
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
    return rate


def count_work(model: Path, data: Path) -> dict[str, float]:
    """Tokens of a row on average, and the operations that it asks for.

    Operations are twice the weights of the blocks a token forward, and once more for gradients: base weights have no
    gradients of their own; recomputation, padding, adapters, the output head and attention scores are not counted.
    """
    from vlmdata.families import find_family
    from vlmdata.shards import open_folder
    from vlmtrain.lengths import measure_lengths
    from vlmtrain.model_shape import read_shape
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.source import find_model

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    source = find_model(str(model))
    chat = load_chat_format(source, load_processor(source))
    lengths = measure_lengths(open_folder(data).split("train"), chat, find_family(config))
    shape = read_shape(config)
    weights = {
        part: sum(layer.inputs * layer.outputs for block in shape.stack(part) for layer in block.linears)
        for part in ("language", "vision")
    }
    tokens, patches = float(lengths.tokens.mean()), float(lengths.patches.mean())
    return {"row_tokens": tokens, "row_flops": 4 * (weights["language"] * tokens + weights["vision"] * patches)}


def counted(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps whose time counts: compilation is over, and nothing is profiled."""
    profiled = range(14, 21) if result["profiled"] else ()
    return [step for number, step in enumerate(result["steps"]) if number >= WARM_STEPS and number not in profiled]


def print_table(results: list[dict[str, Any]]) -> None:
    """One line a recipe. Where a recipe's steps have other rows, they are compared by rows, and losses are not."""
    first = results[0]
    print(f"\n{first['shape']}, {first['size']}, adapters on everything, {len(first['steps'])} steps")
    base = next((line for line in results if line["recipe"] == "notebook"), first)
    table = [["recipe", "step s", "spread", "all s", "tokens/s", "waiting", "peak GB", "of peak rate", "speed-up"]]
    table[0] += ["loss differs", *(["held-out"] if "held_out_loss" in first else [])]
    for line in results:
        times = sorted(step["step_seconds"] for step in counted(line))
        a_row = statistics.median(times) / line["rows"]
        base_row = statistics.median(step["step_seconds"] for step in counted(base)) / base["rows"]
        table.append(
            [
                f"{line['recipe']}, {line['load_in']}, {line['rows']} rows",
                f"{statistics.median(times):.3f}",
                f"{times[0]:.3f} to {times[-1]:.3f}",
                f"{sum(step['step_seconds'] for step in counted(line)):.1f}",
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
    steps = [step for step in line["steps"][WARM_STEPS:] if "waiting_seconds" in step]
    if not steps:
        return "-"
    return f"{statistics.median(step['waiting_seconds'] / step['step_seconds'] for step in steps):.1%}"


def describe_difference(line: dict[str, Any], base: dict[str, Any]) -> str:
    """The largest difference of a step's loss, where the steps have the same rows."""
    if line["rows"] != base["rows"]:
        return "-"
    pairs = zip(line["steps"], base["steps"], strict=False)
    return f"{max(abs(a['loss'] - b['loss']) / b['loss'] for a, b in pairs):.3%}"


def read_attention(log: Path) -> list[str]:
    """What a run's output says of the attention that it got: Unsloth's banner, and the program's own line."""
    lines = log.read_text(encoding="utf-8").splitlines()
    found = [line[line.index("FA [") :] for line in lines if "FA [" in line][:1]
    return found + [line for line in lines if line.startswith(("vision attention:", "attention:"))][:1]


if __name__ == "__main__":
    main()
