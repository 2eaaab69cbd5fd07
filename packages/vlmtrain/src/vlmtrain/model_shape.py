"""The layers of a model, from its config alone: what the memory plan counts. No weight is made or read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.layers import Part, module_part, part_of

__all__ = ["Block", "Linear", "ModelShape", "Norm", "read_shape"]

_BLOCK = re.compile(r"^(.+?\.\d+)\.")
"""Repeated blocks are numbered: `model.visual.blocks.0`, `model.language_model.layers.0`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer."""

    name: str
    """Full name."""
    inputs: int
    """Features that go in."""
    outputs: int
    """Features that come out."""
    kind: str
    """`attention`, `mlp` or `other`."""

    @property
    def leaf(self) -> str:
        """Its own name, such as `q_proj`."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """One normalisation."""

    name: str
    """Full name."""
    features: int
    """Length of what it normalises."""
    is_layer_norm: bool
    """torch's LayerNorm, which autocast computes in 32 bit, rather than a root-mean-square norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A repeated block: attention and MLP with their norms."""

    name: str
    """Full name."""
    part: Part
    """`vision` or `language`; blocks of a connector count as `connector`."""
    linears: tuple[Linear, ...]
    """In the model's order."""
    norms: tuple[Norm, ...]
    """In the model's order."""
    parameters: int
    """All of its parameters."""
    in_windows: bool = False
    """Whether it attends within windows short enough for the kernels that rotate and attend in one."""

    @property
    def width(self) -> int:
        """Features of the residual stream: what the block takes and gives."""
        return max((norm.features for norm in self.norms), default=max(each.inputs for each in self.linears))

    @property
    def is_cross_attention(self) -> bool:
        """Whether its keys and values come from pictures."""
        return any(".cross_attn." in each.name for each in self.linears)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a model is made of."""

    model: Any
    """The model on torch's meta device: names and shapes, no memory."""
    model_type: str
    """Of config.json."""
    vision_type: str
    """Of its vision part."""
    blocks: tuple[Block, ...]
    """Every repeated block, in the model's order."""
    others: tuple[Linear, ...]
    """Linear layers outside the blocks: connector and output head."""
    parameters: dict[Part, int]
    """Parameters of each part; embeddings belong to the language model, weights used twice count once."""
    vocabulary: int
    """Rows of the output head."""
    hidden: int
    """Features of the language model's residual stream."""
    merge: int
    """Patches that the connector makes one token of."""

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def stack(self, part: Part) -> list[Block]:
        """The blocks of a part."""
        return [block for block in self.blocks if block.part == part]

    @property
    def linears(self) -> list[Linear]:
        """All linear layers."""
        return [each for block in self.blocks for each in block.linears] + list(self.others)


def read_shape(config: dict[str, Any]) -> ModelShape:
    """Lays a model out on the meta device.

    Args:
        config: config.json of the model.

    Raises:
        ConfigError: transformers does not know the type, or cannot make it of this config.
    """
    model = _make_on_meta(config)
    found: dict[str, dict[str, list[Any]]] = {}
    others: list[Linear] = []
    for name, module in model.named_modules():
        numbered = _BLOCK.match(name)
        entry = found.setdefault(numbered[1], {"linears": [], "norms": []}) if numbered else None
        layer = _as_linear(name, module)
        if layer is not None:
            (entry["linears"] if entry else others).append(layer)
        elif entry is not None and (norm := _as_norm(name, module)) is not None:
            entry["norms"].append(norm)
    parameters: dict[Part, int] = {}
    of_blocks: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parameters[part_of(name)] = parameters.get(part_of(name), 0) + parameter.numel()
        if numbered := _BLOCK.match(name):
            of_blocks[numbered[1]] = of_blocks.get(numbered[1], 0) + parameter.numel()
    windowed = _blocks_in_windows(model.config.vision_config)
    blocks = tuple(
        Block(
            name=name,
            part=part_of(name),
            linears=tuple(entry["linears"]),
            norms=tuple(entry["norms"]),
            parameters=of_blocks.get(name, 0),
            in_windows=part_of(name) == "vision" and int(name.rpartition(".")[2]) in windowed,
        )
        for name, entry in found.items()
        if entry["linears"]
    )
    text = model.config.get_text_config()
    vision = config.get("vision_config") or {}
    return ModelShape(
        model=model,
        model_type=str(config.get("model_type")),
        vision_type=str(vision.get("model_type") or getattr(model.config.vision_config, "model_type", "")),
        blocks=blocks,
        others=tuple(others),
        parameters=parameters,
        vocabulary=int(text.vocab_size),
        hidden=int(text.hidden_size),
        merge=_merge(model.config),
    )


def _blocks_in_windows(vision: Any) -> set[int]:
    """Numbers of a tower's blocks that attend within windows; none where its windows are too long for the kernels.

    Other families' towers have a `window_size` too, of another meaning.
    """
    from vlmtrain.speed.window_attention import LONGEST_WINDOW

    if not str(vision.model_type).startswith("qwen2_5_vl"):
        return set()
    if (vision.window_size // vision.patch_size) ** 2 > LONGEST_WINDOW:
        return set()
    return set(range(vision.depth)) - set(vision.fullatt_block_indexes)


def _make_on_meta(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    plain = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(AutoConfig.for_model(config["model_type"], **plain))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the installed transformers has no vision-language model of type {config.get('model_type')!r}, "
            "so that its size is not known: pass --load-in"
        ) from error


def _as_linear(name: str, module: Any) -> Linear | None:
    import torch

    if not isinstance(module, torch.nn.Linear):
        return None
    return Linear(name=name, inputs=module.in_features, outputs=module.out_features, kind=module_part(name))


def _as_norm(name: str, module: Any) -> Norm | None:
    import torch

    weight = getattr(module, "weight", None)
    if "norm" not in type(module).__name__.lower() or weight is None:
        return None
    is_layer_norm = isinstance(module, torch.nn.LayerNorm)
    return Norm(name=name, features=int(weight.numel()), is_layer_norm=is_layer_norm)


def _merge(config: Any) -> int:
    """Patches that become one token: by side for Qwen and Mistral 3, by pooling to a fixed number for Gemma 3."""
    vision = config.vision_config
    side = getattr(config, "spatial_merge_size", None) or getattr(vision, "spatial_merge_size", None)
    if side:
        return int(side) ** 2
    tokens = getattr(config, "mm_tokens_per_image", None)
    if tokens:
        return max(1, (int(vision.image_size) // int(vision.patch_size)) ** 2 // int(tokens))
    return 1
