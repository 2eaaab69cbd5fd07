"""Models of real sizes with random weights, and sets of pictures for them, made on the spot: no hub, no download."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from shapes import SHAPES

__all__ = ["build_set", "make_full_size", "make_tiny_of"]


def make_full_size(shape: str, folder: Path) -> Path:
    """Writes a model of a shape with random 16-bit weights, made on the GPU, and its family's processor.

    Args:
        shape: One of `SHAPES`.
        folder: Where to; left as it is when it is there.
    """
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    tiny = make_tiny_of(shape, folder.parent)
    config = AutoConfig.for_model(**config_of(shape, tiny))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    open_closed(model)
    model.generation_config = GenerationConfig.from_pretrained(tiny)
    model.save_pretrained(folder)
    save_processor(shape, tiny, folder)
    print(f"{shape}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters", flush=True)
    # what the allocator keeps would be missing to the processes that train
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return folder


def make_tiny_of(shape: str, work: Path) -> Path:
    """The tiny model of a shape's family, which has its config and processor; left as it is when it is there."""
    family = SHAPES[shape]["family"]
    tiny = work / f"{family}-tiny"
    if not (tiny / "config.json").exists():
        subprocess.run([sys.executable, "-m", "vlmtrain", "tiny", family, str(tiny)], check=True)
    return tiny


def config_of(shape: str, tiny: Path) -> dict[str, Any]:
    """The config of the family's tiny model with the sizes of the shape."""
    sizes = SHAPES[shape]
    values: dict[str, Any] = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    text = dict(sizes["text"])
    if "mrope_section" in text:
        values["text_config"]["rope_parameters"]["mrope_section"] = text.pop("mrope_section")
    values["text_config"].pop("layer_types", None)  # one a layer, made anew from the number of layers
    values["text_config"] |= text
    values["vision_config"] |= sizes["vision"]
    values |= {"tie_word_embeddings": sizes["tie_word_embeddings"], "dtype": "bfloat16", **sizes.get("top", {})}
    values["text_config"]["tie_word_embeddings"] = sizes["tie_word_embeddings"]
    for section in (values["text_config"], values["vision_config"]):
        section["initializer_range"] = 0.02
        section["dtype"] = "bfloat16"
    return values


def open_closed(model: Any) -> None:
    """What a new model starts with at zero would show the text nothing of the picture: gates, Gemma's projection."""
    for name, weight in model.named_parameters():
        if name.endswith("gate") and weight.numel() == 1:
            weight.data.fill_(0.5)
        elif name.endswith("mm_input_projection_weight"):
            weight.data.normal_(std=0.02)


def save_processor(shape: str, tiny: Path, folder: Path) -> None:
    """The tiny model's processor, for pictures of the size that the shape's tower has."""
    from transformers import AutoProcessor

    AutoProcessor.from_pretrained(tiny).save_pretrained(folder)
    sizes = SHAPES[shape]
    file = folder / "processor_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["image_processor"] |= sizes.get("image_processor", {})
    file.write_text(json.dumps(values | sizes.get("processor", {})), encoding="utf-8")


def build_set(
    folder: Path, *, rows: int, sizes: list[tuple[int, int]], words: tuple[int, int] = (8, 8), held_out: int = 0
) -> Path:
    """Builds a set of photographs-like pictures with questions and answers, through `vlmdata build`.

    Args:
        folder: Where to; left as it is when it is whole.
        rows: How many, at least, are to train on.
        sizes: `(width, height)` in px, taken in turn.
        words: Fewest and most words of an answer.
        held_out: Rows, about as many, of a split `val` beside them.
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
    # what is held out is drawn by a hash, so that its number is not exact
    rows += 2 * held_out
    for row in range(rows):
        width, height = sizes[row % len(sizes)]
        coarse = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(raw / f"{row}.jpg", quality=90)
        answer = " ".join(draw.choice(vocabulary, draw.integers(words[0], words[1] + 1)))
        lines.append(json.dumps({"image": f"{row}.jpg", "instruction": "What is in the picture?", "response": answer}))
    (raw / "set.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = ["--image", "image", "--instruction", "instruction", "--response", "response"]
    limits = ["--min-side", "64", "--max-side", "2000", "--dedup", "none"]
    if held_out:
        limits += ["--split", f"val={held_out / rows:.4f}"]
    command = ["build", str(raw / "set.jsonl"), *columns, "--image-root", str(raw), *limits, "--out", str(built)]
    subprocess.run([sys.executable, "-m", "vlmdata", *command], check=True, stdout=subprocess.DEVNULL)
    return built
