"""Which part of a vision-language model a module or parameter belongs to, by its name.

The names are those of transformers' classes: `model.visual.blocks.0.attn.qkv`, `model.multi_modal_projector.linear_1`,
`model.language_model.layers.0.mlp.up_proj`. Adapters, learning rates and the table of trainable parameters all ask
here.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from vlmdata.errors import ConfigError
from vlmtrain.adapter_config import AdapterConfig

__all__ = ["Part", "adapter_targets", "full_modules", "module_part", "part_of", "vision_stacks"]

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


def vision_stacks(model: Any) -> list[Any]:
    """The stacks of equal blocks that a model's vision tower consists of; none where it has no tower."""
    import torch

    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and part_of(name) == "vision" and len(set(map(type, module))) == 1
    ]


def module_part(name: str) -> Literal["attention", "mlp", "other"]:
    """The kind of block that a module name lies in."""
    if _ATTENTION.search(name):
        return "attention"
    return "mlp" if _MLP.search(name) else "other"


def adapter_targets(model: Any, config: AdapterConfig) -> list[str]:
    """Full names of the linear layers that get an adapter, in the model's order.

    Args:
        model: A torch module without adapters.
        config: The flags and the connector, or `all-linear` for every linear layer but the output head.

    Raises:
        ConfigError: Nothing matches, or the connector has no linear layer.
    """
    import torch

    # bitsandbytes' quantised layers derive from Linear too.
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if config.targets == "all-linear":
        chosen = [name for name in linear if part_of(name) != "head"]
    else:
        parts = {"vision": config.finetune_vision_layers, "language": config.finetune_language_layers}
        kinds = {"attention": config.finetune_attention_modules, "mlp": config.finetune_mlp_modules}
        joins = {n for n in linear if config.connector == "lora" and part_of(n) == "connector"}
        if config.connector == "lora" and not joins:
            raise ConfigError("the model's connector has no linear layer to adapt: use --connector full, or frozen")
        chosen = [
            n for n in linear if n in joins or (parts.get(part_of(n), False) and kinds.get(module_part(n), False))
        ]
    trained = tuple(f"{name}." for name in full_modules(model, config))
    chosen = [name for name in chosen if not f"{name}.".startswith(trained)]
    if not chosen:
        raise ConfigError("the finetune flags match no linear layer of this model; try --targets all-linear")
    return chosen


def full_modules(model: Any, config: AdapterConfig) -> list[str]:
    """Full names of the modules that are trained in all of their weights and saved with the adapter.

    A module that holds others is given as those of its parts that have weights of their own: a list of modules cannot
    be replaced as a whole by a trained copy.

    Args:
        model: A torch module without adapters.
        config: `connector` and `modules_to_save`.

    Raises:
        ConfigError: A name fits no module, or one whose weights another module shares.
    """
    modules = dict(model.named_modules())
    wanted = {name for name in modules if config.connector == "full" and part_of(name) == "connector"}
    problems = []
    for given in config.modules_to_save:
        fitting = {name for name in modules if name == given or name.endswith(f".{given}")}
        if not fitting:
            problems.append(f"modules_to_save: the model has no module {given!r}")
        wanted |= {name for name in modules if any(f"{name}.".startswith(f"{each}.") for each in fitting)}
    chosen: list[str] = []
    for name in modules:
        inside = any(name.startswith(f"{each}.") for each in chosen)
        if name in wanted and not inside and next(modules[name].parameters(recurse=False), None) is not None:
            chosen.append(name)
    problems += [
        f"modules_to_save: {name!r} shares its weights with another module (tied embeddings), which would not change"
        for name in _tied(model, chosen)
    ]
    if problems:
        raise ConfigError(problems)
    return chosen


def _tied(model: Any, names: list[str]) -> list[str]:
    """Those of the modules that have a parameter which another module has too."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name for name in names if any(owners[id(p)] > 1 for p in model.get_submodule(name).parameters(recurse=False))
    ]
