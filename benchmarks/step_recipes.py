"""The recipes that train_step compares, each a program over the same rows: the notebooks' script, the guides', ours."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import Program

__all__ = ["Run", "counted", "counted_numbers", "measure", "measure_held_out", "median_seconds", "read_config"]

_WARMUP_STEPS = 5
_FIRST_PROFILED = 14
"""From the one before those that `--profile-steps` slows down, to three after them, steps are not counted."""

Prepared = tuple[list[Any], Callable[[], int], Callable[[], dict[str, Any]]]
"""What follows `python` on the command line, how many steps are done, and what the run left."""


class Run:
    """A recipe's run over a set.

    Args:
        recipe: `notebook`, `guide` or `vlmtrain`, the last with options of `vlmtrain fit` behind it; settings of the
            environment may come first, as in `PYTHONPATH=OTHER vlmtrain`.
        model: Folder of the model.
        data: Built folder.
        out: Path that its files begin with.
        options: Of train_step.
        gpu: Number of the GPU that it gets.
    """

    def __init__(
        self, recipe: str, model: Path, data: Path, out: Path, options: argparse.Namespace, *, gpu: int = 0
    ) -> None:
        self.recipe, self.model, self.data, self.out, self.options = recipe, model, data, out, options
        # what an earlier run left must not pass for this one's
        Path(f"{out}.json").unlink(missing_ok=True)
        for left in (out, Path(f"{out}-adapter")):
            shutil.rmtree(left, ignore_errors=True)
        words = recipe.split()
        settings = list(itertools.takewhile(lambda word: "=" in word, words))
        name, *self.extra = words[len(settings) :]
        command, count_steps, self.read = RECIPES[name](self)
        self.load_in = "4bit" if name == "guide" else options.load_in
        self.rows = 4 if name == "guide" else options.batch_size
        self.log = Path(f"{out}.log")
        self.program = Program(
            name=out.name,
            command=[sys.executable, *map(str, command)],
            log=self.log,
            count_steps=count_steps,
            steps=options.steps,
            environment={
                "CUDA_VISIBLE_DEVICES": str(gpu),
                # runs beside each other would write each other's files
                "UNSLOTH_COMPILE_LOCATION": f"{out}-compiled",
                "PYTHONUNBUFFERED": "1",
                **dict(each.split("=", 1) for each in settings),
            },
        )

    def collect(self) -> dict[str, Any]:
        """What the run left: its steps, its memory, the attention that it got.

        Raises:
            RuntimeError: It did not get that far; the end of its log is printed.
        """
        try:
            result = self.read()
        except (OSError, ValueError, IndexError) as error:
            print("\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]), flush=True)
            raise RuntimeError(f"it left nothing to compare: {error}") from error
        result |= {"recipe": self.recipe, "load_in": self.load_in, "rows": self.rows}
        profiled = int(self.extra[self.extra.index("--profile-steps") + 1]) if "--profile-steps" in self.extra else 0
        result |= {"profiled": profiled, "attention": read_attention(self.log)}
        result["alone"] = self.program.alone
        if not counted(result):
            raise RuntimeError("no step was done alone")
        return result


def prepare_vlmtrain(run: Run) -> Prepared:
    """`vlmtrain fit` with its defaults; the schedule is that of the notebooks."""
    options, out = run.options, run.out
    command = ["-m", "vlmtrain", "fit", "--data", run.data, "--model", run.model, "--out", out, "--overwrite"]
    command += ["--backend", "unsloth", "--load-in", options.load_in, "--max-steps", options.steps, "--lr", 2e-4]
    command += ["--schedule", "linear", "--warmup", _WARMUP_STEPS / options.steps, "--batch-size", options.batch_size]
    command += ["--grad-accum", 1, "--workers", options.workers, "--eval-steps", options.steps, "--no-report"]
    if options.gpu_memory_gb:
        command += ["--gpu-memory-gb", options.gpu_memory_gb]
    metrics = out / "metrics.jsonl"

    def read() -> dict[str, Any]:
        if options.held_out:
            last = sorted((out / "checkpoints").glob("checkpoint-*"))[-1]
            shutil.copytree(last, f"{out}-adapter")
        lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
        steps = [line for line in lines if "loss" in line]
        return {"steps": steps, "peak_memory_gb": max(step["peak_memory_gb"] for step in steps)}

    return [*command, *run.extra], functools.partial(count_lines, metrics, '"loss":'), read


def prepare_notebook(run: Run, *, batch_size: int = 0, passes: int = 1, four_bit: bool = False) -> Prepared:
    """The notebooks' script on the rows in the order in which `vlmtrain fit` takes them."""
    options, out = run.options, run.out
    order = Path(f"{out}-order.json")
    order.write_text(json.dumps(order_of(run.model, run.data, options.batch_size)), encoding="utf-8")
    command: list[Any] = [Path(__file__).parent / "notebook_recipe.py", "--model", run.model, "--data", run.data]
    command += ["--out", f"{out}.json", "--max-steps", options.steps, "--order", order]
    command += ["--batch-size", batch_size or options.batch_size, "--grad-accum", passes]
    for option, marker in zip(("--instruction-part", "--response-part"), markers(run.model), strict=True):
        command += [option, marker]
    if four_bit or options.load_in == "4bit":
        command.append("--load-in-4bit")
    if options.gpu_memory_gb:
        command += ["--gpu-memory-gb", options.gpu_memory_gb]
    if options.held_out:
        command += ["--adapter", f"{out}-adapter"]

    def read() -> dict[str, Any]:
        result: dict[str, Any] = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
        return result

    return command, functools.partial(count_lines, Path(f"{out}.log"), r"step \d+: \{"), read


RECIPES = {
    "notebook": prepare_notebook,
    # The guides' own numbers, one row at a time and four passes a step, in 4 bit; half the global batch.
    "guide": functools.partial(prepare_notebook, batch_size=1, passes=4, four_bit=True),
    "vlmtrain": prepare_vlmtrain,
}


def count_lines(path: Path, pattern: str) -> int:
    """Whole lines of a log that speak of a step; none while it is not there."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return 0
    return len(re.findall(rf"{pattern}.*\n", text))


def read_attention(log: Path) -> list[str]:
    """What a run's output says of the attention that it got: Unsloth's banner, and the program's own line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line[line.index("FA [") :] for line in lines if "FA [" in line][:1]
    return found + [line for line in lines if line.startswith(("vision attention:", "attention:"))][:1]


def measure(model: Path, data: Path) -> Any:
    """Tokens and patches of the rows to train on; see `vlmtrain.lengths.RowLengths`."""
    from vlmdata.families import find_family
    from vlmdata.shards import open_folder
    from vlmtrain.lengths import measure_lengths
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.source import find_model

    source = find_model(str(model))
    chat = load_chat_format(source, load_processor(source))
    return measure_lengths(open_folder(data).split("train"), chat, find_family(read_config(model)))


def order_of(model: Path, data: Path, batch_size: int) -> list[int]:
    """The order of `vlmtrain fit` in its first epoch, by the seed that it has by itself."""
    from vlmtrain.arrangement import choose_batching
    from vlmtrain.config import FitConfig

    values = {"data": data, "model": str(model), "out": "unused", "batch_size": batch_size, "grad_accum": 1}
    config, model_type = FitConfig.from_values(values), read_config(model)["model_type"]
    plan = choose_batching(config, measure(model, data).tokens, model_type, print, has_kernel=True)
    return [row for rows in plan.arrange(0) for row in rows]


def read_config(model: Path) -> dict[str, Any]:
    """The model's config.json."""
    values: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return values


def markers(model: Path) -> tuple[str, str]:
    """The texts with which the family's template opens a user's and an assistant's turn."""
    from vlmdata.families import find_family

    family = find_family(read_config(model))
    assert family is not None
    return family.instruction_part, family.response_part


def measure_held_out(run: Run) -> float:
    """Mean loss of a supervised token over the held-out rows, by the reference backend, whoever trained the adapter."""
    adapter = f"{run.out}-adapter"
    out = Path(f"{adapter}-held-out.jsonl")
    command = ["-m", "vlmtrain", "eval", adapter, "--data", run.data, "--rank", "--backend", "transformers"]
    command += ["--out", out, "--load-in", "16bit"]
    with Path(f"{adapter}-held-out.log").open("wb") as log:
        subprocess.run(
            [sys.executable, *map(str, command)],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=run.options.limit,
        )
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)


def counted_numbers(result: dict[str, Any]) -> list[int]:
    """The steps, from 0, whose time counts: done alone on the machine, and not profiled."""
    profiled = range(_FIRST_PROFILED, _FIRST_PROFILED + 5 + result["profiled"]) if result["profiled"] else ()
    return [number for number in result["alone"] if number not in profiled]


def counted(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps whose time counts."""
    return [result["steps"][number] for number in counted_numbers(result)]


def median_seconds(steps: list[dict[str, Any]]) -> float:
    """Of one step."""
    return statistics.median(step["step_seconds"] for step in steps)
