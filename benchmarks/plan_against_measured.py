"""The peak that `vlmtrain plan` foresees against what a few training steps take on a GPU.

    python benchmarks/plan_against_measured.py --out DIR [--shapes qwen2.5-vl-3b gemma3-4b ministral3-3b]
        [--cases unsloth:16bit:off:on unsloth:4bit:on:on] [--image 1000x750] [--batch-size 4] [--steps 3]

Makes, in DIR, models of real sizes with random weights (nothing is fetched), and a set of one-coloured pictures. Each
case, BACKEND:PRECISION:CHECKPOINTING[:COMPILE], then trains in a process of its own. COMPILE is what --compile-vision
takes: auto where it is left out, whose peak may be that of passes timed without. `torch.cuda.max_memory_allocated` and
`max_memory_reserved` stand beside the plan, and so does what the blocks of either stack kept of the last forward pass.
Prints a table, writes DIR/plan.json, and ends with 1 where the plan is off by more than 15 %. Without a GPU, --tiny
tries the script out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from full_size import make_full_size
from shapes import SHAPES

TOLERANCE = 0.15
TEXT_WORDS = 60
CASES = ["unsloth:16bit:off:off", "unsloth:16bit:off:on", "unsloth:4bit:on:on"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    shapes = ["qwen2.5-vl-3b", "gemma3-4b", "ministral3-3b"]
    parser.add_argument("--shapes", nargs="+", default=shapes, choices=list(SHAPES))
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--image", default="1000x750")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="tiny layers, to try the script out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train_and_measure(json.loads(arguments.worker))
        return 0
    width, height = map(int, arguments.image.split("x"))
    data = make_set(arguments.out / f"set-{arguments.image}", (width, height))
    results = []
    for shape in arguments.shapes:
        model = make_model(arguments.out, shape, tiny=arguments.tiny)
        for case in arguments.cases:
            results.append(run_case(shape, case, model, data, arguments))
            print(json.dumps(results[-1]), flush=True)
    (arguments.out / "plan.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)
    return 0 if all(abs(result["error"] or 0) <= TOLERANCE for result in results) else 1


def make_set(folder: Path, size: tuple[int, int]) -> Path:
    """A built folder of 32 rows with one picture each, all of one size."""
    import io

    from PIL import Image

    from vlmdata.manifest import Counts, Manifest, write_manifest
    from vlmdata.set_files import write_set_files
    from vlmdata.shard_writer import SplitWriter

    if (folder / "manifest.json").is_file():
        return folder
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 40, 40)).save(buffer, "PNG")
    info = {
        **{"original_width": size[0], "original_height": size[1], "width": size[0], "height": size[1]},
        **{"format": "PNG", "action": "stored", "window": None, "frame": None, "salvaged": False, "note": None},
        **{"pixel_hash": "0" * 32, "phash": "0" * 64},
    }
    answer = "red and nothing else " * (TEXT_WORDS // 4)
    question = [{"type": "image", "text": None}, {"type": "text", "text": "What is in the picture?"}]
    row = {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "images": [{"bytes": buffer.getvalue(), "path": None}],
        **{"references": [answer], "objects": None, "image_info": [info], "meta": "{}", "source": "made"},
    }
    with SplitWriter(folder, "train") as writer:
        writer.write_rows([{**row, "id": f"row-{index}"} for index in range(32)])
        entries = {"train": writer.close()}
    write_set_files(folder, entries)
    write_manifest(folder, Manifest(splits=entries, counts=Counts(read=32, kept=32), fingerprint="made"))
    return folder


def make_model(out: Path, shape: str, *, tiny: bool) -> Path:
    """The shape's model, or the tiny one of its family."""
    if not tiny:
        return make_full_size(shape, out / shape)
    from vlmtrain.tiny import make_tiny

    folder = out / f"{shape}-tiny"
    if not (folder / "config.json").is_file():
        make_tiny(SHAPES[shape]["family"], folder)
    return folder


def run_case(shape: str, case: str, model: Path, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans and measures one case."""
    backend, load_in, checkpointing, compiled = (*case.split(":"), "auto")[:4]
    run = arguments.out / "runs" / f"{shape}-{case.replace(':', '-')}"
    values = {
        **{"data": str(data), "model": str(model), "out": str(run), "backend": backend, "load_in": load_in},
        **{"gradient_checkpointing": checkpointing, "batch_size": arguments.batch_size, "grad_accum": 1},
        **{"max_steps": arguments.steps, "warmup": 0.0, "compile_vision": compiled},
    }
    planned = foresee(values)
    began = time.monotonic()
    command = [sys.executable, __file__, "--out", str(arguments.out), "--worker", json.dumps(values)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        print(finished.stdout[-2000:], finished.stderr[-3000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"{shape} {case}: the run failed")
    measured = json.loads(finished.stdout.strip().splitlines()[-1])
    peak = measured["allocated"]
    return {
        **{"shape": shape, "case": case, **planned, **measured},
        "error": planned["peak"] / peak - 1 if peak else None,
        "seconds": round(time.monotonic() - began),
    }


def foresee(values: dict[str, Any]) -> dict[str, Any]:
    """What `vlmtrain plan` says of the case, in bytes."""
    from vlmtrain.config import AdapterConfig, OptimizerConfig
    from vlmtrain.plan import make_plan
    from vlmtrain.plan_config import PlanConfig

    optimizer = OptimizerConfig(
        batch_size=values["batch_size"], grad_accum=1, gradient_checkpointing=values["gradient_checkpointing"]
    )
    config = PlanConfig(
        model=values["model"],
        data=Path(values["data"]),
        backend=values["backend"],
        compile_vision=values["compile_vision"],
    )
    plan = make_plan(config, AdapterConfig(), optimizer)
    if values["gradient_checkpointing"] == "auto":
        raise SystemExit("auto recomputes as few layers as the GPU's memory allows: there is no one peak to foresee")
    off = values["gradient_checkpointing"] == "off"
    estimate = plan.estimate(values["load_in"], "off" if off else "full")
    step = plan.workload.step
    parts = ("weights", "adapters", "optimizer", "vision_activations", "language_activations", "transient", "peak")
    return {
        **{"parameters": plan.shape.total, "tokens": step.tokens, "patches": step.patches},
        **{name: getattr(estimate, name) for name in parts},
        "device": estimate.device,
    }


def train_and_measure(values: dict[str, Any]) -> None:
    """Trains, and prints the peak as the last line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from vlmtrain import training
    from vlmtrain.config import FitConfig

    kept: dict[str, int] = {}
    make_trainer = training.make_trainer

    def weigh_and_make(backend: Any, loaded: Any, *arguments: Any, **keywords: Any) -> Any:
        weigh_blocks(loaded, kept)
        return make_trainer(backend, loaded, *arguments, **keywords)

    training.make_trainer = weigh_and_make
    training.fit(
        FitConfig.from_values({**values, "data": Path(values["data"]), "out": Path(values["out"])}), overwrite=True
    )
    import torch

    from vlmtrain.layers import part_of

    on_gpu = torch.cuda.is_available()
    allocated = torch.cuda.max_memory_allocated() if on_gpu else None
    # a block that is recomputed keeps nothing of its forward pass; what is weighed is the second one
    weighed = on_gpu and values["gradient_checkpointing"] == "off"
    sums = {part: sum(size for name, size in kept.items() if part_of(name) == part) for part in ("vision", "language")}
    print(
        json.dumps(
            {
                **{"allocated": allocated, "reserved": torch.cuda.max_memory_reserved() if on_gpu else None},
                **{f"{part}_kept": size if weighed else None for part, size in sums.items()},
            }
        )
    )


def weigh_blocks(loaded: Any, kept: dict[str, int]) -> None:
    """Notes by block what is in use after it beyond what was before, in the last forward pass of training."""
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    from vlmtrain.loaded import base_of

    def start(name: str) -> Any:
        def note(block: Any, *_: Any) -> None:
            if block.training:
                kept[name] = -torch.cuda.memory_allocated()

        return note

    def end(name: str) -> Any:
        def note(block: Any, *_: Any) -> None:
            if block.training:
                kept[name] += torch.cuda.memory_allocated()

        return note

    for name, block in base_of(loaded.model).named_modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.register_forward_pre_hook(start(name))
            block.register_forward_hook(end(name))


def print_table(results: list[dict[str, Any]]) -> None:
    """Planned and measured peaks in GiB."""

    def gib(value: int | None) -> str:
        return f"{value / 2**30:.1f}" if value is not None else "-"

    print(
        "| shape | case | B parameters | tokens | patches | planned GiB | measured | error | with CUDA | reserved | "
        "vision kept, planned | measured | language kept, planned | measured |"
    )
    print("|---|---|" + "---|" * 12)
    for each in results:
        error = f"{each['error']:+.0%}" if each["error"] is not None else "-"
        print(
            f"| {each['shape']} | {each['case']} | {each['parameters'] / 1e9:.2f} | {each['tokens']} | "
            f"{each['patches']} | {gib(each['peak'])} | {gib(each['allocated'])} | {error} | {gib(each['device'])} | "
            f"{gib(each['reserved'])} | {gib(each['vision_activations'])} | {gib(each['vision_kept'])} | "
            f"{gib(each['language_activations'])} | {gib(each['language_kept'])} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
