"""Models of real sizes with random weights, and sets of pictures for them, made on the spot: no hub, no download."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["SHAPES", "build_set", "make_full_size"]

# Sizes as the published config.json files give them; names are of the shapes, the weights are random.
_QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "family": "qwen2.5-vl",
        "tie_word_embeddings": True,
        "text": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "mrope_section": [16, 24, 24],
        },
        "vision": {**_QWEN2_5_VISION, "out_hidden_size": 2048},
    },
    "qwen2.5-vl-7b": {
        "family": "qwen2.5-vl",
        "tie_word_embeddings": False,
        "text": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "mrope_section": [16, 24, 24],
        },
        "vision": {**_QWEN2_5_VISION, "out_hidden_size": 3584},
    },
    "qwen3-vl-8b": {
        "family": "qwen3-vl",
        "tie_word_embeddings": False,
        "text": {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "mrope_section": [24, 20, 20],
        },
        "vision": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
    "gemma3-4b": {
        "family": "gemma3",
        "tie_word_embeddings": True,
        "text": {
            "vocab_size": 262208,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
        "vision": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
    },
}


def make_full_size(shape: str, folder: Path) -> Path:
    """Writes a model of a shape with random 16-bit weights, made on the GPU, and its family's processor.

    Args:
        shape: One of `SHAPES`.
        folder: Where to; left as it is when it is there.
    """
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    sizes = SHAPES[shape]
    tiny = folder.parent / f"{sizes['family']}-tiny"
    subprocess.run([sys.executable, "-m", "vlmtrain", "tiny", sizes["family"], str(tiny)], check=True)
    values = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    text = dict(sizes["text"])
    rope = values["text_config"].get("rope_parameters")
    if "mrope_section" in text and rope is not None:
        rope["mrope_section"] = text.pop("mrope_section")
    for key in ("layer_types",):  # one a layer, made anew from the number of layers
        values["text_config"].pop(key, None)
    values["text_config"] |= text
    values["vision_config"] |= sizes["vision"]
    values |= {"tie_word_embeddings": sizes["tie_word_embeddings"], "dtype": "bfloat16"}
    values["text_config"]["tie_word_embeddings"] = sizes["tie_word_embeddings"]
    for section in (values["text_config"], values["vision_config"]):
        section["initializer_range"] = 0.02
        section["dtype"] = "bfloat16"
    config = AutoConfig.for_model(**values)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig.from_pretrained(tiny)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny).save_pretrained(folder)
    print(f"{shape}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters", flush=True)
    return folder


def build_set(folder: Path, *, rows: int, sizes: list[tuple[int, int]], words: tuple[int, int] = (8, 8)) -> Path:
    """Builds a set of photographs-like pictures with questions and answers, through `vlmdata build`.

    Args:
        folder: Where to; left as it is when it is whole.
        rows: How many.
        sizes: `(width, height)` in px, taken in turn.
        words: Fewest and most words of an answer.
    """
    built = folder / "built"
    if (built / "manifest.json").exists():
        return built
    import numpy as np
    from PIL import Image

    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    vocabulary = ["red", "green", "small", "large", "house", "tree", "line", "left", "right", "above", "seven", "two"]
    lines = []
    for row in range(rows):
        width, height = sizes[row % len(sizes)]
        coarse = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(raw / f"{row}.jpg", quality=90)
        answer = " ".join(draw.choice(vocabulary, draw.integers(words[0], words[1] + 1)))
        lines.append(json.dumps({"image": f"{row}.jpg", "instruction": "What is in the picture?", "response": answer}))
    (raw / "set.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = ["--image", "image", "--instruction", "instruction", "--response", "response"]
    limits = ["--min-side", "64", "--max-side", "2000", "--dedup", "none"]
    command = ["build", str(raw / "set.jsonl"), *columns, "--image-root", str(raw), *limits, "--out", str(built)]
    subprocess.run([sys.executable, "-m", "vlmdata", *command], check=True, stdout=subprocess.DEVNULL)
    return built
