"""How weights are held: the choice behind `--load-in auto`, from the sizes of the model and of the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError, MissingDependencyError
from vlmtrain.config import AdapterConfig
from vlmtrain.device import memory_bytes
from vlmtrain.memory import StepLoad, estimate_memory
from vlmtrain.model_shape import ModelShape, read_shape

__all__ = ["MEMORY_SHARE", "Precision", "can_quantise", "choose_precision", "count_weights"]

MEMORY_SHARE = 0.85
"""Share of the GPU's memory that a plan may take; the rest is fragmentation and other processes."""

# A first plan: what adapters, their optimizer state, activations under checkpointing and the CUDA context take, beside
# the weights. Measured peaks of LoRA runs lie below it.
_LORA_OVERHEAD_BYTES = 6 << 30
_LORA_OVERHEAD_SHARE = 0.15
# Full fine-tuning: weights, gradients and two moments of AdamW, in bytes a parameter.
_FULL_32BIT_BYTES = 16
_FULL_16BIT_BYTES = 8
_HALF_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A choice and its reason."""

    load_in: str
    """`4bit`, `8bit`, `16bit` or `32bit`."""
    reason: str
    """Why, in words."""


def count_weights(config: dict[str, Any]) -> int:
    """Number of parameters of a model, from its config alone; no memory is taken for them.

    Raises:
        ConfigError: transformers does not know the type.
    """
    return read_shape(config).total


def choose_precision(
    requested: str,
    *,
    method: str,
    config: dict[str, Any],
    adapter: AdapterConfig | None = None,
    step: StepLoad | None = None,
    fused: bool = True,
    gpu_memory_gb: float | None = None,
) -> Precision:
    """Resolves `--load-in`.

    Args:
        requested: `auto` or a precision.
        method: `lora` or `full`.
        config: config.json of the model.
        adapter: What is trained, when a training step is to be planned.
        step: The longest micro-batch, likewise; None for a model that only answers.
        fused: The backend compiles norms and loss; see `memory.estimate_memory`.
        gpu_memory_gb: Most memory of the GPU to use, in GiB, if not all of it.

    Raises:
        MissingDependencyError: 4- or 8-bit weights were asked for without a GPU.
        ConfigError: The base is quantised already and something else was asked for, or all weights are to be trained.
    """
    import torch

    stored = _stored_precision(config)
    if stored and method == "full":
        raise ConfigError(
            f"the model's weights are stored in {stored}: they cannot be fine-tuned in full; use the 16-bit model"
        )
    if stored and requested not in ("auto", stored):
        raise ConfigError(f"load_in {requested!r}: the model's weights are stored in {stored}; use its 16-bit variant")
    if stored and not can_quantise():
        raise MissingDependencyError(
            f"the model's weights are stored in {stored}, which needs a GPU, and none is visible to torch; "
            "use its 16-bit variant"
        )
    if stored:
        return Precision(load_in=stored, reason="the model's weights are stored so")
    if requested in ("4bit", "8bit") and not can_quantise():
        raise MissingDependencyError(
            f"load_in {requested!r} needs a GPU, and none is visible to torch; use 32bit or 16bit"
        )
    if requested != "auto":
        return Precision(load_in=requested, reason="asked for")
    if not torch.cuda.is_available():
        return Precision(load_in="32bit", reason="there is no GPU")
    limit = MEMORY_SHARE * memory_bytes(gpu_memory_gb)
    if adapter is not None and step is not None and method == "lora":
        return _plan_step(read_shape(config), adapter, step, limit, fused=fused)
    weights = count_weights(config)
    return _plan_full(weights, limit) if method == "full" else _plan_lora(weights, limit)


def can_quantise() -> bool:
    """Whether bitsandbytes' 4- and 8-bit weights are for use here."""
    import torch

    return bool(torch.cuda.is_available())


def _plan_step(shape: ModelShape, adapter: AdapterConfig, step: StepLoad, limit: float, *, fused: bool) -> Precision:
    """16 bit where it fits with every activation recomputed: quantised weights cost more than recomputing."""
    needed = estimate_memory(
        shape,
        step,
        adapter=adapter,
        load_in="16bit",
        checkpointing="full",
        fused=fused,
        # of the optimizers for adapters, one that keeps most
        optimizer="adamw_torch_fused",
    ).device
    return _judge(shape.total, "with adapters and the longest micro-batch under full checkpointing", needed, limit)


def _plan_lora(weights: int, limit: float) -> Precision:
    needed = weights * _HALF_BYTES * (1 + _LORA_OVERHEAD_SHARE) + _LORA_OVERHEAD_BYTES
    return _judge(weights, "with adapters and activations", needed, limit)


def _judge(weights: int, beside: str, needed: float, limit: float) -> Precision:
    fits = needed <= limit
    return Precision(
        load_in="16bit" if fits else "4bit",
        reason=f"{weights / 1e9:.2f} B weights in 16 bit, {beside}, take about {needed / 2**30:.1f} GiB of the "
        f"{limit / 2**30:.1f} GiB that may be used: " + ("they fit" if fits else "they do not fit"),
    )


def _plan_full(weights: int, limit: float) -> Precision:
    needed = weights * _FULL_32BIT_BYTES + _LORA_OVERHEAD_BYTES
    fits = needed <= limit
    return Precision(
        load_in="32bit" if fits else "16bit",
        reason=f"{weights / 1e9:.2f} B weights in 32 bit, with gradients and optimizer, "
        f"take about {needed / 2**30:.1f} GiB of the {limit / 2**30:.1f} GiB that may be used: "
        + (
            "they fit"
            if fits
            else f"in 16 bit they take {weights * _FULL_16BIT_BYTES / 2**30:.1f} GiB, but small updates round away"
        ),
    )


def _stored_precision(config: dict[str, Any]) -> str | None:
    quantization = config.get("quantization_config") or {}
    if quantization.get("load_in_4bit"):
        return "4bit"
    return "8bit" if quantization.get("load_in_8bit") else None
