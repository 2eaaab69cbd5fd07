"""A vision tower from which nothing is learned goes without a backward pass.

Recomputing activations takes inputs that ask for gradients, so that peft and Unsloth make embeddings ask for them,
those of patches too. A frozen tower would then keep, or compute twice, all that its gradients need, and compute them
for nobody.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmtrain.layers import part_of, vision_stacks
from vlmtrain.loaded import base_of

__all__ = ["skip_frozen_vision"]


def skip_frozen_vision(model: Any) -> list[Any]:
    """Ends the way of gradients in front of a tower's blocks, if no parameter of the tower is trained.

    Args:
        model: A transformers or peft model, its adapters in place.

    Returns:
        The blocks of a frozen tower, which must not be recomputed either; none of one that is trained.
    """
    base = base_of(model)
    if any(part_of(name) == "vision" and each.requires_grad for name, each in base.named_parameters()):
        return []
    stacks = vision_stacks(base)
    for stack in stacks:
        stack[0].register_forward_pre_hook(_detach, with_kwargs=True)
    return [block for stack in stacks for block in stack]


def _detach(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cut(value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) else value

    return tuple(map(cut, arguments)), {name: cut(value) for name, value in keywords.items()}
