"""The peak that `vlmtrain plan` foresees against what a few training steps take on a GPU.

    python benchmarks/plan_against_measured.py --out DIR [--families qwen2.5-vl gemma3 ministral3]
        [--cases unsloth:16bit:off unsloth:4bit:on] [--image 1000x750] [--batch-size 4] [--steps 3]

Makes, in DIR, a model of each family with the layer sizes of a hub model and random weights (nothing is fetched), and a
set of one-coloured pictures. Each case, BACKEND:PRECISION:CHECKPOINTING, then trains in a process of its own, and
`torch.cuda.max_memory_allocated` and `max_memory_reserved` stand beside the plan. Prints a table, writes
DIR/plan.json, and ends with 1 where the plan is off by more than 15 %. Without a GPU, --tiny tries the script out.
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

TOLERANCE = 0.15
TEXT_WORDS = 60

QWEN_3B = {
    **{"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "num_attention_heads": 16},
    **{"num_key_value_heads": 2, "vocab_size": 151936},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-vl": {
        "text_config": QWEN_3B
        | {"hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "num_attention_heads": 12},
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16},
        "tie_word_embeddings": True,
    },
    "qwen2.5-vl": {
        "text_config": QWEN_3B,
        "vision_config": {
            **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048},
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "text_config": {
            **{"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240, "num_attention_heads": 8},
            **{"num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "vocab_size": 262208},
            "sliding_window": 1024,
        },
        "vision_config": {
            **{"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304, "num_attention_heads": 16},
            **{"image_size": 896, "patch_size": 14},
        },
        "mm_tokens_per_image": 256,
    },
    "ministral3": {
        "text_config": {
            **{"hidden_size": 3072, "num_hidden_layers": 26, "intermediate_size": 9216, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072},
        },
        "vision_config": {
            **{"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16},
            "head_dim": 64,
        },
        "tie_word_embeddings": True,
    },
}
"""Layer sizes of Qwen2-VL-2B, Qwen2.5-VL-3B, Gemma-3-4B and Ministral-3-3B."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", nargs="+", default=["qwen2.5-vl", "gemma3", "ministral3"], choices=list(SHAPES))
    parser.add_argument("--cases", nargs="+", default=["unsloth:16bit:off", "unsloth:4bit:on"])
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
    for family in arguments.families:
        model = make_model(arguments.out / f"{family}{'-tiny' if arguments.tiny else ''}", family, tiny=arguments.tiny)
        for case in arguments.cases:
            results.append(run_case(family, case, model, data, arguments))
            print(json.dumps(results[-1]), flush=True)
    (arguments.out / "plan.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)
    return 0 if all(abs(result["error"] or 0) <= TOLERANCE for result in results) else 1


def make_set(folder: Path, size: tuple[int, int]) -> Path:
    """A built folder of 32 rows with one picture each, all of one size."""
    import io

    from PIL import Image

    from vlmdata.manifest import Counts, Manifest, write_manifest
    from vlmdata.shard_writer import SplitWriter, write_set_files

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


def make_model(folder: Path, family: str, *, tiny: bool) -> Path:
    """A model of the family with real layer sizes and random 16-bit weights, and a tiny one's processor."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vlmtrain.tiny import make_tiny

    if (folder / "config.json").is_file():
        return folder
    make_tiny(family, folder)
    if tiny:
        return folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, value in SHAPES[family].items():
        if isinstance(value, dict):
            section = config.setdefault(name, {})
            section.update(value)
            # they follow from the number of layers
            section.pop("layer_types", None)
            section.pop("initializer_range", None)
        else:
            config[name] = value
    if family == "gemma3":
        processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        processor["image_processor"]["size"] = {"height": 896, "width": 896}
        processor["image_seq_length"] = 256
        (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    kind = config.pop("model_type")
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **config), dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(previous)
    model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder


def run_case(family: str, case: str, model: Path, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans and measures one case."""
    backend, load_in, checkpointing = case.split(":")
    run = arguments.out / "runs" / f"{family}-{case.replace(':', '-')}"
    values = {
        **{"data": str(data), "model": str(model), "out": str(run), "backend": backend, "load_in": load_in},
        **{"gradient_checkpointing": checkpointing, "batch_size": arguments.batch_size, "grad_accum": 1},
        **{"max_steps": arguments.steps, "warmup": 0.0},
    }
    planned = foresee(values)
    began = time.monotonic()
    command = [sys.executable, __file__, "--out", str(arguments.out), "--worker", json.dumps(values)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        print(finished.stdout[-2000:], finished.stderr[-3000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"{family} {case}: the run failed")
    measured = json.loads(finished.stdout.strip().splitlines()[-1])
    peak = measured["allocated"]
    return {
        **{"family": family, "case": case, **planned, **measured},
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
    config = PlanConfig(model=values["model"], data=Path(values["data"]), backend=values["backend"])
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
    from vlmtrain.config import FitConfig
    from vlmtrain.training import fit

    fit(FitConfig.from_values({**values, "data": Path(values["data"]), "out": Path(values["out"])}), overwrite=True)
    import torch

    on_gpu = torch.cuda.is_available()
    allocated = torch.cuda.max_memory_allocated() if on_gpu else None
    print(json.dumps({"allocated": allocated, "reserved": torch.cuda.max_memory_reserved() if on_gpu else None}))


def print_table(results: list[dict[str, Any]]) -> None:
    """Planned and measured peaks in GiB."""

    def gib(value: int | None) -> str:
        return f"{value / 2**30:.1f}" if value is not None else "-"

    print("| family | case | B parameters | tokens | patches | planned GiB | measured | error | with CUDA | reserved |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for each in results:
        error = f"{each['error']:+.0%}" if each["error"] is not None else "-"
        print(
            f"| {each['family']} | {each['case']} | {each['parameters'] / 1e9:.2f} | {each['tokens']} | "
            f"{each['patches']} | {gib(each['peak'])} | {gib(each['allocated'])} | {error} | {gib(each['device'])} | "
            f"{gib(each['reserved'])} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
