"""A model in memory with what belongs to it: what the backends hand to everything after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmtrain.source import ModelSource

__all__ = ["LoadedModel", "base_of"]


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

    @property
    def generation_stop_ids(self) -> tuple[int, ...]:
        """The token ids at which generation stops."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        return tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (int(eos),)


def base_of(model: Any) -> Any:
    """The transformers model under adapters, and under what trains it on several GPUs."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
