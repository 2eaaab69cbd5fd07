"""`make_tiny`: build a family's tiny model and write it to a folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmdata.families import get_family
from vlmtrain.tiny.options import TinyOptions
from vlmtrain.whole_folders import as_resource_error, is_write_failure

__all__ = ["TINY_FAMILIES", "make_tiny"]

BUILDERS = {
    "qwen2-vl": ("vlmtrain.tiny.qwen", "build_qwen2_vl"),
    "qwen2.5-vl": ("vlmtrain.tiny.qwen", "build_qwen2_5_vl"),
    "qwen3-vl": ("vlmtrain.tiny.qwen", "build_qwen3_vl"),
    "gemma3": ("vlmtrain.tiny.gemma", "build_gemma3"),
    "llama3.2-vision": ("vlmtrain.tiny.llama", "build_llama3_2_vision"),
    "pixtral": ("vlmtrain.tiny.mistral", "build_pixtral"),
    "ministral3": ("vlmtrain.tiny.mistral", "build_ministral3"),
    "llava-1.5": ("vlmtrain.tiny.llava", "build_llava_1_5"),
    "llava-1.6": ("vlmtrain.tiny.llava", "build_llava_1_6"),
}
"""Where each family is built: module and function, imported when asked for (transformers takes seconds)."""

# Above every tiny model with sizes that one would try out.
_REAL_WEIGHTS_BYTES = 1 << 30

TINY_FAMILIES: tuple[str, ...] = tuple(BUILDERS)
"""The families that `make_tiny` knows."""


def make_tiny(family: str, out: Path, **sizes: Any) -> Path:
    """Write a tiny randomly initialised model with its processor to a folder; nothing is downloaded.

    Args:
        family: One of `TINY_FAMILIES`.
        out: Folder to write; made if it is not there, files of an earlier model in it are replaced.
        **sizes: Fields of `TinyOptions`, such as `hidden_size=160` or `seed=0`.

    Returns:
        `out`. `AutoProcessor` and `AutoModelForImageTextToText` load it.

    Raises:
        ConfigError: The family is unknown, a size is unknown or does not fit, or the folder holds a real model.
        ResourceError: The folder cannot be written.
    """
    module, function = BUILDERS[get_family(family).name]
    unknown = sorted(set(sizes) - set(TinyOptions.__dataclass_fields__))
    if unknown:
        raise ConfigError(
            f"unknown size {', '.join(map(repr, unknown))}: known are {', '.join(TinyOptions.__dataclass_fields__)}"
        )
    options = TinyOptions(**sizes)
    _require_no_real_model(out)

    import torch

    # The weights depend on the seed alone, and the caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model, processor = getattr(importlib.import_module(module), function)(options)
    try:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        processor.save_pretrained(out)
    except Exception as error:
        # safetensors has an error of its own for a full disk
        if not is_write_failure(error):
            raise
        raise as_resource_error(error, out) from error
    return out


def _require_no_real_model(out: Path) -> None:
    """Refuses a folder whose weights are no tiny model's, which would be replaced without a way back."""
    found = sum(path.stat().st_size for path in (*out.glob("*.safetensors"), *out.glob("*.bin")))
    if found >= _REAL_WEIGHTS_BYTES:
        raise ConfigError(f"{out}: holds {found / 1e9:.1f} GB of weights, no tiny model's: name another folder")
