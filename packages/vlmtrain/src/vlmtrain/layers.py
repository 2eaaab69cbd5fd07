"""Which part of a vision-language model a module or parameter belongs to, by its name.

The names are those of transformers' classes: `model.visual.blocks.0.attn.qkv`, `model.multi_modal_projector.linear_1`,
`model.language_model.layers.0.mlp.up_proj`. Adapters, learning rates and the table of trainable parameters all ask
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from vlmdata.errors import ConfigError
from vlmtrain.config import AdapterConfig

__all__ = ["Part", "adapter_targets", "count_parameters", "module_part", "part_of"]

Part = Literal["vision", "connector", "language", "head"]

# Connectors come first: Qwen keeps its merger inside the vision tower.
_CONNECTOR = re.compile(
    r"(?:^|\.)(?:merger|deepstack_merger_list|multi_modal_projector|patch_merger|connector)(?:\.|$)"
)
_VISION = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|vision_encoder)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)lm_head(?:\.|$)")
_ATTENTION = re.compile(r"(?:^|\.)(?:self_attn|cross_attn|attention|attn)(?:\.|$)")
_MLP = re.compile(r"(?:^|\.)(?:mlp|feed_forward|ffn)(?:\.|$)")


def part_of(name: str) -> Part:
    """The part that a module or parameter name lies in."""
    if _HEAD.search(name):
        return "head"
    if _CONNECTOR.search(name):
        return "connector"
    return "vision" if _VISION.search(name) else "language"


def module_part(name: str) -> Literal["attention", "mlp", "other"]:
    """The kind of block that a module name lies in."""
    if _ATTENTION.search(name):
        return "attention"
    return "mlp" if _MLP.search(name) else "other"


def adapter_targets(model: Any, config: AdapterConfig) -> list[str]:
    """Full names of the linear layers that get an adapter, in the model's order.

    Args:
        model: A torch module without adapters.
        config: The flags, or `all-linear` for every linear layer but the output head.

    Raises:
        ConfigError: Nothing matches.
    """
    import torch

    # bitsandbytes' quantised layers derive from Linear too.
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if config.targets == "all-linear":
        chosen = [name for name in linear if part_of(name) != "head"]
    else:
        parts = {"vision": config.finetune_vision_layers, "language": config.finetune_language_layers}
        kinds = {"attention": config.finetune_attention_modules, "mlp": config.finetune_mlp_modules}
        chosen = [n for n in linear if parts.get(part_of(n), False) and kinds.get(module_part(n), False)]
    if not chosen:
        raise ConfigError("the finetune flags match no linear layer of this model; try --targets all-linear")
    return chosen


def count_parameters(named_parameters: Iterable[tuple[str, Any]]) -> dict[str, tuple[int, int]]:
    """Trainable and all parameters of each part.

    Args:
        named_parameters: `model.named_parameters()`; quantised weights count their packed elements.

    Returns:
        `{part: (trainable, all)}`.
    """
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in named_parameters:
        trainable, total = counts.get(part_of(name), (0, 0))
        size = parameter.numel()
        counts[part_of(name)] = (trainable + size * bool(parameter.requires_grad), total + size)
    return counts
