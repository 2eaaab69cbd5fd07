"""Adapters that begin as the best low-rank repair of 4-bit weights: one step of LoftQ.

Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models" (arXiv 2310.08659). The base stays as
bitsandbytes quantised it, so that run and result share one base; peft's own way would replace its weights.
"""

from __future__ import annotations

from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.loaded import LoadedModel
from vlmtrain.source import ModelSource

__all__ = ["begin_with_rounding", "require_unrounded_base"]

# Further directions and rounds of the randomised decomposition, which make its first ones exact enough.
_OVERSAMPLING = 8
_ROUNDS = 4


def require_unrounded_base(source: ModelSource, load_in: str, *, asked: bool) -> None:
    """Refuses, before anything is loaded, what LoftQ cannot begin with.

    Args:
        source: The model, or a run to go on with.
        load_in: Precision of its weights.
        asked: Whether this run is to be one with `--loftq`.

    Raises:
        ConfigError: The weights are not held in 4 bit, there is no 16-bit original to compare them with, or a run with
            LoftQ would be gone on with without.
    """
    if not asked:
        raise ConfigError(f"{source.run}: its adapters fit 4-bit weights alone: go on with --loftq --load-in 4bit")
    if load_in != "4bit":
        raise ConfigError(
            f"--loftq makes up for the rounding of 4-bit weights, and these are held in {load_in}: pass --load-in 4bit"
        )
    if "quantization_config" in source.config:
        raise ConfigError(f"{source.name}: is stored in 4 bit, and --loftq needs the 16-bit model to compare with")


def begin_with_rounding(loaded: LoadedModel, *, trust_remote_code: bool = False) -> tuple[int, float]:
    """Sets fresh adapters on 4-bit layers to the best repair of their rounding.

    Args:
        loaded: A model in 4 bit with fresh adapters; its 16-bit original is read once more, into the host's memory.
        trust_remote_code: Run Python code that comes with the model.

    Returns:
        How many layers were set, and the mean share of their rounding (in squares) that the adapters make up for.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForImageTextToText

    original = AutoModelForImageTextToText.from_pretrained(
        loaded.source.name, dtype=torch.bfloat16, revision=loaded.source.revision, trust_remote_code=trust_remote_code
    )
    repaired: list[float] = []
    for name, module in loaded.model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        weight = module.get_base_layer().weight
        if getattr(weight, "quant_state", None) is None:
            continue
        rounded = dequantize_4bit(weight.data, weight.quant_state).float()
        rounding = original.get_submodule(name).weight.detach().to(rounded.device, torch.float32) - rounded
        for adapter in module.active_adapters:
            left, right = _factorise(rounding, module.r[adapter])
            module.lora_B[adapter].weight.data.copy_(left / module.scaling[adapter])
            module.lora_A[adapter].weight.data.copy_(right)
            rest = rounding - left @ right
            repaired.append(1 - float(rest.square().sum() / rounding.square().sum()))
    return len(repaired), sum(repaired) / max(len(repaired), 1)


def _factorise(matrix: Any, rank: int) -> tuple[Any, Any]:
    """`(O, r)` and `(r, I)` factors whose product is the best approximation of an `(O, I)` matrix of that rank."""
    import torch

    directions = min(rank + _OVERSAMPLING, *matrix.shape)
    left, strengths, right = torch.svd_lowrank(matrix, q=directions, niter=_ROUNDS)
    roots = strengths[:rank].sqrt()
    return left[:, :rank] * roots, (right[:, :rank] * roots).T
