"""A stand-in for llama.cpp's convert_hf_to_gguf.py: notes its calls, and writes files of the same form for Qwen2.5-VL.

Real: the GGUF files, the names, the split of the fused q, k, v layer, bf16 weights. Left out: the vocabulary.
$STAND_IN_MODE makes it fail, lose the vision tower, or convert another model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np


def read_weights(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """A safetensors file in bf16 or float32; torch would take seconds to import."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data[begin:end], np.float32)
            yield name, values.reshape(entry["shape"])


parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outtype", choices=["bf16", "f16"])
parser.add_argument("--outfile", type=Path)
parser.add_argument("--mmproj", action="store_true")
arguments = parser.parse_args()
with Path(__file__).with_name("calls.jsonl").open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], os.environ.get("HF_HUB_OFFLINE")]) + "\n")
mode = os.environ.get("STAND_IN_MODE", "")
if mode == "fail":
    sys.exit("Traceback (most recent call last):\nNotImplementedError: Architecture 'Qwen9' not supported!")
if mode == "silent" and arguments.mmproj:
    sys.exit(0)
folder = Path(mode.removeprefix("base=")) if mode.startswith("base=") else arguments.model
assert (arguments.model / "tokenizer.json").is_file()
assert (arguments.model / "preprocessor_config.json").is_file() or (arguments.model / "processor_config.json").is_file()
kind = {"bf16": gguf.GGMLQuantizationType.BF16, "f16": gguf.GGMLQuantizationType.F16}[arguments.outtype]
writer = gguf.GGUFWriter(arguments.outfile, "clip" if arguments.mmproj else "qwen2vl")
if arguments.mmproj:
    writer.add_bool("clip.has_vision_encoder", mode != "blind")


def add(name: str, values: np.ndarray) -> None:
    if values.ndim < 2:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


for name, values in read_weights(folder / "model.safetensors"):
    if name.startswith("visual.") != arguments.mmproj:
        continue
    block = re.search(r"(?:blocks|layers)\.(\d+)\.(.*)", name)
    if block is None:
        add(name, values.reshape(values.shape[0], -1) if values.ndim > 2 else values)
    elif "attn.qkv" in name:
        for part, piece in zip("qkv", np.split(values, 3), strict=True):
            add(f"v.blk.{block[1]}.attn_{part}.{name.rpartition('.')[2]}", piece)
    else:
        add(f"{'v.' if arguments.mmproj else ''}blk.{block[1]}.{block[2]}", values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
