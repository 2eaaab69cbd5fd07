"""Every family through every stage: tiny, check, fit (LoRA), eval, export merged, generate; a table of what went well.

    python benchmarks/family_stages.py --out DIR --backend transformers
    python benchmarks/family_stages.py --out DIR --backend unsloth --budget 1200

Each family runs in a process of its own, all stages and precisions in that one, because Unsloth takes half a minute to
start. Results are written after each stage (DIR/FAMILY/BACKEND.json) and each family (DIR/family_stages.{json,md});
what has passed is not run again, so that the same command goes on where the time ran out. Both backends share DIR:
each then also trains four steps on one saved adapter, and the losses of the two must lie within 1 % in each step.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmdata.families import FAMILIES

STAGES = ("check", "fit", "losses", "eval", "export", "generate")
BACKENDS = ("transformers", "unsloth")
STEPS = 4
LOSS_TOLERANCE = 0.01
QUESTION = "Which colour is this?"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
ROOT = Path(__file__).parents[1]


def main() -> int:
    arguments = parse_arguments()
    out: Path = arguments.out.resolve()
    if arguments.child:
        run_child(arguments, out)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    make_data(out)
    began = time.monotonic()
    longest = 0.0
    for family in arguments.families:
        result_file = out / family / f"{arguments.backend}.json"
        if not arguments.again and all(is_passed(read_result(result_file), p) for p in arguments.precisions):
            print(f"{family}: passed before", flush=True)
            continue
        left = arguments.budget - (time.monotonic() - began) if arguments.budget else None
        if left is not None and left < max(longest, 1.0):
            print(f"{family}: not started, {left:.0f} s are left of the budget; the same command goes on", flush=True)
            break
        started = time.monotonic()
        run_family_process(family, arguments, out, left)
        longest = max(longest, time.monotonic() - started)
        print(describe_family(family, arguments.backend, read_result(result_file)), flush=True)
        write_tables(out)
    write_tables(out)
    print((out / "family_stages.md").read_text(encoding="utf-8"), flush=True)
    return (
        0 if all(is_good(out, family, arguments.backend, arguments.precisions) for family in arguments.families) else 1
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="transformers")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--precisions", nargs="+", help="default: 16bit 4bit on a GPU, 32bit on a CPU")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--budget", type=float, help="seconds after which no further family is started")
    parser.add_argument("--again", action="store_true", help="run what passed before again")
    parser.add_argument(
        "--unsloth-on-cpu", action="store_true", help="Unsloth's code behind the tests' stand-in device"
    )
    parser.add_argument("--child", choices=list(FAMILIES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.precisions:
        import torch

        arguments.precisions = ["16bit", "4bit"] if torch.cuda.is_available() else ["32bit"]
    return arguments


def make_data(out: Path) -> None:
    """24 pictures of one colour each, built as a user builds them."""
    if (out / "data" / "manifest.json").exists():
        return
    from PIL import Image

    rows = out / "rows"
    rows.mkdir(exist_ok=True)
    with (rows / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "colour"])
        for index in range(24):
            name, colour = list(COLOURS.items())[index % 3]
            picture = Image.new("RGB", (56, 56), colour)
            picture.putpixel((index, index), (0, 0, 0))
            picture.save(rows / f"{index}.png")
            writer.writerow([f"{index}.png", name])
    command = [sys.executable, "-m", "vlmdata", "build", "rows/rows.csv", "--out", "data", "--instruction", QUESTION]
    command += ["--response", "{colour}", "--dedup", "exact", "--min-side", "1", "--split", "val=0.25"]
    subprocess.run(command, cwd=out, check=True)


def run_family_process(family: str, arguments: argparse.Namespace, out: Path, seconds: float | None) -> None:
    """One family in a process of its own; its output goes to a file beside its results."""
    command = [sys.executable, __file__, "--child", family, "--out", str(out), "--backend", arguments.backend]
    command += ["--precisions", *arguments.precisions, "--hidden-size", str(arguments.hidden_size)]
    command += ["--layers", str(arguments.layers), "--lr", str(arguments.lr)]
    command += [name for name in ("--unsloth-on-cpu", "--again") if getattr(arguments, name[2:].replace("-", "_"))]
    (out / family).mkdir(exist_ok=True)
    with (out / family / f"{arguments.backend}.log").open("w", encoding="utf-8") as log:
        try:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"{family}: ended by the budget; see {log.name}", flush=True)


def run_child(arguments: argparse.Namespace, out: Path) -> None:
    """All stages of one family, in every precision."""
    if arguments.unsloth_on_cpu and arguments.backend == "unsloth":
        load_module(ROOT / "tests" / "contract" / "unsloth_on_cpu.py").patch_trainer()
    family = arguments.child
    began = time.monotonic()
    model = out / family / "model"
    if not (model / "config.json").exists():
        from vlmtrain.tiny import make_tiny

        make_tiny(family, model, hidden_size=arguments.hidden_size, layers=arguments.layers)
    file = out / family / f"{arguments.backend}.json"
    result = {"family": family, "backend": arguments.backend, **read_result(file)}
    for precision in arguments.precisions:
        if is_passed(result, precision) and not arguments.again:
            continue
        folder = out / family / f"{arguments.backend}-{precision}"
        stages = result["precisions"][precision] = {}
        for stage, found in run_stages(
            model,
            out / "data",
            folder,
            backend=arguments.backend,
            load_in=precision,
            shared_adapter=out / family / "shared",
            lr=arguments.lr,
        ):
            stages[stage] = found
            write_json(file, result)
    from vlmtrain.environment import describe_environment

    write_json(file, result | {"environment": describe_environment(), "seconds": round(time.monotonic() - began, 1)})


def run_stages(
    model: Path,
    data: Path,
    out: Path,
    *,
    backend: str,
    load_in: str,
    shared_adapter: Path | None = None,
    lr: float = 2e-3,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stages of one model in one precision, one after the other in this process.

    Args:
        model: A model's folder.
        data: A built folder with a train and a val split.
        out: Folder for the runs and the export; must be empty or absent.
        backend: `transformers` or `unsloth`.
        load_in: Precision of the weights in training.
        shared_adapter: Folder of the adapter on which both backends' losses are compared; the first run's adapter is
            put there if there is none. None leaves that stage out.
        lr: Learning rate.

    Yields:
        A stage's name and `{ok, seconds, …}`, with `error` in place of findings where it failed; later stages are then
        not run.
    """
    import shutil

    if out.exists():
        shutil.rmtree(out)
    run, export = out / "run", out / "merged"
    config = {
        "data": data,
        "model": str(model),
        "out": run,
        "backend": backend,
        "load_in": load_in,
        "max_steps": STEPS,
        "eval_steps": STEPS,
        "batch_size": 2,
        "grad_accum": 2,
        "warmup": 0.0,
        "lr": lr,
        "workers": 0,
        # Unsloth's own way of recomputing activations wants a GPU
        "gradient_checkpointing": "auto" if has_gpu() else "off",
    }
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "check": lambda: check(config),
        "fit": lambda: fit(config, shared_adapter),
        "losses": lambda: losses_on(shared_adapter, config, out / "shared-run"),
        "eval": lambda: evaluate(run, backend),
        "export": lambda: export_merged(run, export, backend),
        "generate": lambda: generate(run, export, backend),
    }
    for stage in STAGES:
        if stage == "losses" and shared_adapter is None:
            continue
        began = time.monotonic()
        try:
            found = {"ok": True, **steps[stage]()}
        except Exception as error:  # whatever a stage fails of belongs into the table
            traceback.print_exc()
            found = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        yield stage, found | {"seconds": round(time.monotonic() - began, 1)}
        if not found["ok"]:
            return


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def check(config: dict[str, Any]) -> dict[str, Any]:
    from vlmtrain.config import FitConfig
    from vlmtrain.training import prepare

    prepared = prepare(FitConfig.from_values(config))
    return {"longest_row_tokens": prepared.max_length}


def fit(config: dict[str, Any], shared_adapter: Path | None) -> dict[str, Any]:
    import shutil

    from vlmtrain.config import FitConfig
    from vlmtrain.training import fit as run_fit

    run = run_fit(FitConfig.from_values(config))
    if shared_adapter is not None and not shared_adapter.exists():
        shutil.copytree(run.weights, shared_adapter)
    return {"losses": read_losses(run.path)}


def losses_on(adapter: Path | None, config: dict[str, Any], out: Path) -> dict[str, Any]:
    from vlmtrain.config import FitConfig
    from vlmtrain.training import fit as run_fit

    # both backends see the same rows in the same passes, whatever either would choose
    same = {"batching": "plain", "micro_batch": config["batch_size"]}
    run = run_fit(FitConfig.from_values({**config, **same, "model": str(adapter), "out": out}))
    return {"losses": read_losses(run.path)}


def read_losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    if len(losses) != STEPS:
        raise ValueError(f"{len(losses)} losses for {STEPS} steps")
    return losses


def evaluate(run: Path, backend: str) -> dict[str, Any]:
    from vlmtrain.evaluation import evaluate as run_evaluate
    from vlmtrain.settings import EvalConfig

    result = run_evaluate(str(run), EvalConfig(rows=4, max_new_tokens=4, batch_size=4, backend=backend))
    return {"rows": result["rows"], "cer": result["scores"]["cer"]["value"]}


def export_merged(run: Path, out: Path, backend: str) -> dict[str, Any]:
    from vlmtrain.exports import export
    from vlmtrain.settings import ExportConfig

    report = export(str(run), ExportConfig(out=out, format="merged_16bit", check_rows=4, backend=backend))
    parity, merged = report["parity"], report["merged_weights"]
    found = {name: parity[name] for name in ("relative_error", "training_change", "clear_positions", "agreeing_tokens")}
    return found | {"adapted_layers": merged["layers"], "changed_layers": merged["changed_layers"]}


def generate(run: Path, export: Path, backend: str) -> dict[str, Any]:
    """The export answers, and so does the run's adapter; random weights may choose differently by rounding."""
    from PIL import Image

    from vlmtrain.answers import answer_all
    from vlmtrain.settings import GenerateConfig

    picture = export.parent / "picture.png"
    Image.new("RGB", (56, 56), COLOURS["green"]).save(picture)
    config = GenerateConfig(prompt=QUESTION, image=(picture,), max_new_tokens=6, backend=backend)
    answers = [str(next(iter(answer_all(str(model), config)))) for model in (export, run)]
    return {"export_answers": answers[0], "adapter_answers": answers[1]}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {"precisions": {}}


def is_passed(result: dict[str, Any], precision: str) -> bool:
    """Whether every stage went well."""
    stages = result["precisions"].get(precision, {})
    return set(stages) == set(STAGES) and all(found["ok"] for found in stages.values())


def is_good(out: Path, family: str, backend: str, precisions: list[str]) -> bool:
    result = read_result(out / family / f"{backend}.json")
    return all(is_passed(result, precision) for precision in precisions) and all(
        max(differences) <= LOSS_TOLERANCE for differences in compare_losses(out, family).values()
    )


def compare_losses(out: Path, family: str) -> dict[str, list[float]]:
    """Relative differences of the backends' losses, step by step from the shared adapter, by precision that both ran.

    The first is of the forward pass alone; a wrong backward pass shows in the others.
    """
    results = [read_result(out / family / f"{backend}.json")["precisions"] for backend in BACKENDS]
    losses = [
        {p: stages["losses"]["losses"] for p, stages in each.items() if stages.get("losses", {}).get("ok")}
        for each in results
    ]
    return {
        precision: [abs(a - b) / a for a, b in zip(ours, losses[1][precision], strict=True)]
        for precision, ours in losses[0].items()
        if precision in losses[1]
    }


def describe_family(family: str, backend: str, result: dict[str, Any]) -> str:
    parts = []
    for precision, stages in result["precisions"].items():
        marks = " ".join(f"{stage}{mark(stages.get(stage))}" for stage in STAGES)
        failed = next((f" {found['error']}" for found in stages.values() if not found["ok"]), "")
        parts.append(f"{precision}: {marks}{failed}")
    seconds = f"{result['seconds']:.0f} s" if "seconds" in result else "did not finish"
    return f"{family} ({backend}, {seconds}): " + ("; ".join(parts) or "no stage ran, see its log")


def mark(found: dict[str, Any] | None) -> str:
    return "-" if found is None else "✔" if found["ok"] else "✘"


def write_tables(out: Path) -> None:
    """All results so far, as JSON and as tables."""
    results = {
        family: {b: found for b in BACKENDS if (found := read_result(out / family / f"{b}.json"))["precisions"]}
        for family in FAMILIES
    }
    results = {family: found for family, found in results.items() if found}
    write_json(out / "family_stages.json", results)
    lines = [f"| family | backend | weights | tiny | {' | '.join(STAGES)} | merged against adapter | seconds |"]
    lines.append("|---" * (len(STAGES) + 6) + "|")
    for family, by_backend in results.items():
        for backend, result in by_backend.items():
            for precision, stages in result["precisions"].items():
                error = stages["export"].get("relative_error") if "export" in stages else None
                cells = [family, backend, precision, "✔", *(mark(stages.get(stage)) for stage in STAGES)]
                cells.append("-" if error is None else f"{error:.2%}")
                cells.append(f"{sum(found['seconds'] for found in stages.values()):.0f}")
                lines.append(f"| {' | '.join(cells)} |")
    compared = [
        f"| {family} | {precision} | {first_loss(results, family, 'transformers', precision):.4f} "
        f"| {first_loss(results, family, 'unsloth', precision):.4f} | {differences[0]:.3%} | {max(differences):.3%} |"
        for family in results
        for precision, differences in compare_losses(out, family).items()
    ]
    if compared:
        lines += ["", f"Losses of {STEPS} steps from one saved adapter:", ""]
        lines += ["| family | weights | first, transformers | first, unsloth | apart | of all steps at most |"]
        lines += ["|---|---|---|---|---|---|", *compared]
    (out / "family_stages.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def first_loss(results: dict[str, Any], family: str, backend: str, precision: str) -> float:
    return float(results[family][backend]["precisions"][precision]["losses"]["losses"][0])


def load_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
