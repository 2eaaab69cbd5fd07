"""A model in memory with what belongs to it: what the backends hand to everything after them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError, ResourceError
from vlmtrain.source import ModelSource

__all__ = ["LoadedModel", "base_of", "loading"]


@dataclass(slots=True, kw_only=True)
class LoadedModel:
    """A model, its processor, and how it was loaded."""

    model: Any
    """A transformers or peft model."""
    processor: Any
    """The processor with image processor, tokenizer and chat template."""
    source: ModelSource
    """Where it came from."""
    backend: str
    """`unsloth` or `transformers`."""
    load_in: str
    """`4bit`, `8bit`, `16bit` or `32bit`."""
    dtype: Any
    """The torch dtype of activations and unquantised weights."""


def base_of(model: Any) -> Any:
    """The transformers model under adapters, and under what trains it on several GPUs."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def loading(source: ModelSource, load_in: str) -> Iterator[None]:
    """Turns what libraries raise while they load weights into one line.

    Args:
        source: What is loaded.
        load_in: Precision of the weights.

    Raises:
        ResourceError: The GPU has no room.
        ConfigError: Files are broken, missing or of another model.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            f"{source.name}: the GPU has no room for the weights in {load_in}; try --load-in 4bit"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        names = source.name if source.adapter is None else f"{source.name} with the adapter in {source.adapter}"
        raise ConfigError(f"{names}: cannot be loaded: {' '.join(str(error).split())}") from error
