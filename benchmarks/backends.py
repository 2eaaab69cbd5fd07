"""Both backends on one saved adapter: losses of the first steps side by side, then evaluation and a checked export.

    python benchmarks/backends.py --data FOLDER --out DIR [--family qwen2.5-vl] [--steps 10]

Needs a GPU and a folder made by `vlmdata build`. For each precision, a first run gives the adapter weights that are not
zero; then each backend loads that adapter in a process of its own and trains on the same rows in the same order,
dropout 0. Prints a table and writes DIR/backends.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LOSS_TOLERANCE = 0.01
HIDDEN_SIZE = 512
LAYERS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", default="qwen2.5-vl")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precisions", nargs="+", default=["16bit", "4bit"])
    arguments = parser.parse_args()
    results = compare_backends(
        arguments.data, arguments.out, family=arguments.family, steps=arguments.steps, precisions=arguments.precisions
    )
    return 0 if all(result["largest_difference"] <= LOSS_TOLERANCE for result in results) else 1


def compare_backends(
    data: Path, out: Path, *, family: str, steps: int, precisions: list[str], all_commands: bool = True
) -> list[dict[str, Any]]:
    """Runs the comparison for each precision.

    Args:
        data: Built folder.
        out: Folder for all that is made.
        family: Of the tiny model.
        steps: Of each run.
        precisions: How weights are loaded.
        all_commands: Evaluates and exports the adapter as well, neither of which is compared here.

    Returns:
        What is written to backends.json.
    """
    model = out / f"{family}-base"
    vlmtrain("tiny", family, model, "--hidden-size", HIDDEN_SIZE, "--layers", LAYERS)
    results = []
    for precision in precisions:
        folder = out / family / precision
        first = folder / "adapter"
        common = ["--data", data, "--load-in", precision, "--eval-rows", 32, "--warmup", 0]
        vlmtrain(
            "fit", *common, "--model", model, "--out", first, "--max-steps", 10, "--lr", 1e-3, "--backend", "unsloth"
        )
        runs = {}
        for backend in ("unsloth", "transformers"):
            run = folder / backend
            options = ["--model", first / "adapter", "--out", run, "--max-steps", steps, "--backend", backend]
            began = time.monotonic()
            vlmtrain("fit", *common, *options)
            seconds = time.monotonic() - began
            vlmtrain("export", run, "--out", folder / f"{backend}-merged", "--backend", backend)
            if all_commands:
                adapter = ["--format", "adapter", "--out", folder / f"{backend}-adapter"]
                vlmtrain("export", run, *adapter, "--backend", backend)
                vlmtrain("eval", run, "--rows", 16, "--max-new-tokens", 8, "--swap-images", "--backend", backend)
            runs[backend] = _read_run(run, folder / f"{backend}-merged", seconds)
        results.append(_compare(family, precision, runs))
    (out / "backends.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for result in results:
        print(_table(result))
    return results


def vlmtrain(*arguments: Any) -> None:
    """One command in a process of its own, as a user types it."""
    command = [sys.executable, "-m", "vlmtrain", *(str(argument) for argument in arguments)]
    print("$", " ".join(command[2:]), flush=True)
    began = time.monotonic()
    subprocess.run(command, check=True)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def _read_run(run: Path, merged: Path, seconds: float) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    export = json.loads((merged / "export.json").read_text(encoding="utf-8"))
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "eval_losses": [line["eval_loss"] for line in lines if "eval_loss" in line],
        "seconds": round(seconds, 1),
        "parity": export["parity"],
        "merged_weights": export["merged_weights"],
        "environment": export["environment"],
    }


def _compare(family: str, precision: str, runs: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(runs["unsloth"]["losses"], runs["transformers"]["losses"], strict=True)
    differences = [abs(a - b) / b for a, b in pairs]
    return {"family": family, "precision": precision, "largest_difference": max(differences), **runs}


def _table(result: dict[str, Any]) -> str:
    lines = [f"\n{result['family']}, {result['precision']}: loss by step, one saved adapter, dropout 0"]
    lines.append(f"{'step':>5} {'unsloth':>10} {'transformers':>13} {'difference':>11}")
    for step, (a, b) in enumerate(
        zip(result["unsloth"]["losses"], result["transformers"]["losses"], strict=True), start=1
    ):
        lines.append(f"{step:>5} {a:>10.4f} {b:>13.4f} {abs(a - b) / b:>10.3%}")
    for backend in ("unsloth", "transformers"):
        run = result[backend]
        lines.append(
            f"{backend}: merged against adapter on the 16-bit base, logits {run['parity']['relative_error']:.3%} apart "
            f"(training changed them by {run['parity']['training_change']:.2%}); "
            f"{run['merged_weights']['layers']} adapted layers as expected, "
            f"{run['merged_weights']['changed_layers']} above rounding"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
