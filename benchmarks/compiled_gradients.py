"""Gradients of Unsloth's compiled layers against those of the same layers as they are, on a GPU, offline.

    python benchmarks/compiled_gradients.py --work DIR [--shape gemma3-4b] [--size 448x448] [--longer 0 4 8]

Layers are left as they are, compiled whole, and compiled in parts, with and without cuDNN's attention, each time for
one batch of eight rows padded to its longest or further. What is right is as long as the gradient of the layers as they
are, without cuDNN's attention. Before torch 2.14 some compilations of Gemma 3 are wrong, at random
(`vlmtrain.speed.compiler_race`).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from full_size import build_set, make_full_size

ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", default="gemma3-4b")
    parser.add_argument("--size", default="448x448")
    parser.add_argument("--longer", type=int, nargs="+", default=[0, 4, 8], help="tokens of padding more than needed")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    width, height = map(int, options.size.split("x"))
    data = build_set(options.work / f"set-{options.size}-{ROWS}-0", rows=ROWS, sizes=[(width, height)])
    model = make_full_size(options.shape, options.work / options.shape)
    print("length  way                     times the norm  s a pass  the first")
    for length, way, ratio, seconds, first in compare(*load(model, data), options.longer):
        print(f"{length:6}  {way:22} {ratio:15.2f} {seconds:9.3f} {first:10.1f}", flush=True)


def load(model: Path, data: Path) -> tuple[Any, dict[str, Any], Any]:
    """A model with adapters on everything, a batch, and how passes run."""
    from vlmdata.shards import open_folder
    from vlmtrain.adapter_config import AdapterConfig
    from vlmtrain.backends import unsloth as backend
    from vlmtrain.lengths import measure_lengths
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.rows import open_rows
    from vlmtrain.source import find_model
    from vlmtrain.speed.batches import BatchPlan
    from vlmtrain.speed.trainer import Arrangement

    source = find_model(str(model))
    chat = load_chat_format(source, load_processor(source))
    chat.processor.tokenizer.padding_side = "right"
    split = open_folder(data).split("train")
    tokens = measure_lengths(split, chat, source.family).tokens
    options: dict[str, Any] = {"load_in": "16bit", "max_length": 2 * int(tokens.max()), "method": "lora"}
    loaded = backend.load_model(source, chat.processor, **options, checkpointing="off", trust_remote_code=False)
    backend.add_adapter(loaded, AdapterConfig(), checkpointing="off", seed=0)
    collate = backend.make_collator(loaded, chat, max_length=options["max_length"], last_turn_only=False)
    batch = collate([dict(row) for row in open_rows(split)][:ROWS])
    arrangement = Arrangement(plan=BatchPlan(lengths=tokens[:ROWS], rows=ROWS, passes=1))
    arrangement.score = backend.score_supervised
    return loaded, batch, arrangement


def compare(
    loaded: Any, batch: dict[str, Any], arrangement: Any, longer: list[int]
) -> Iterator[tuple[int, str, float, float, float]]:
    """For each length and way the norm over the uncompiled one's, and the time of a pass and of the first."""
    import torch

    from vlmtrain.speed.rounding import pad_tokens
    from vlmtrain.speed.trials import TrialPass

    ways = {"as they are": ("force_eager", False, "1"), "as they are, cuDNN": ("force_eager", True, "1")}
    ways |= {"whole": ("default", False, "1"), "whole, cuDNN": ("default", True, "1")}
    ways |= {"in parts": ("default", False, "0"), "in parts, cuDNN": ("default", True, "0")}
    for more in longer:
        padded = pad_tokens(batch, more, loaded.processor.tokenizer.pad_token_id)
        arrangement.collate = lambda _rows, padded=padded: padded
        length, plain = padded["input_ids"].shape[1], None
        for way, (stance, cudnn, whole) in ways.items():
            torch._dynamo.reset()
            os.environ["UNSLOTH_BLOCK_COMPILE"] = whole
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            trial = TrialPass([], loaded, arrangement)
            with torch.compiler.set_stance(stance):
                times, norms = [], []
                for _ in range(4):
                    began = time.perf_counter()
                    norms.append(trial.gradient_norm())
                    times.append(time.perf_counter() - began)
            # a norm that is no number is the worst
            norm = max(norms, key=lambda each: math.inf if math.isnan(each) else each)
            plain = plain or norm
            yield length, way, norm / plain, min(times[1:]), times[0]


if __name__ == "__main__":
    main()
