"""Whether a trained parameter may go without a gradient in a forward pass: several processes must know beforehand.

Of each parameter, torch's distributed data parallel awaits a gradient in each step. Where one may be idle it has to
look for those in the graph of every pass, which costs the time of a walk through all of it.
"""

from __future__ import annotations

from typing import Any

from vlmdata.families import Family
from vlmtrain.config import AdapterConfig
from vlmtrain.layers import part_of, vision_stacks
from vlmtrain.lengths import RowLengths
from vlmtrain.loaded import base_of

__all__ = ["why_layers_may_idle"]


def why_layers_may_idle(model: Any, family: Family | None, adapter: AdapterConfig, lengths: RowLengths) -> str | None:
    """Says what may keep a trained parameter out of a forward pass.

    Args:
        model: The model in memory, with adapters or fully trainable.
        family: Its family, if it is a known one: of another nothing is known of what its forward pass uses.
        adapter: What is trained.
        lengths: Of the rows that it is trained on.

    Returns:
        The reason, for the eye; None where each pass over any of these rows gives every trained parameter a gradient.
    """
    if family is None:
        return "the model's family is unknown"
    if adapter.method == "full" or adapter.modules_to_save:
        # norms and heads that a checkpoint has and no forward pass uses
        return "modules are trained in full, and some may be of no use to a forward pass"
    without = int((lengths.image_tokens == 0).sum())
    if without and _needs_pictures(model):
        return f"{without} row{'s have' if without > 1 else ' has'} no pictures"
    idle = _trained_unused_blocks(model)
    return f"the output of {idle[0]} is used by nothing" if idle else None


def _needs_pictures(model: Any) -> bool:
    """Whether something is trained that only pictures pass through."""
    return any(
        each.requires_grad and (part_of(name) in ("vision", "connector") or "cross_attn" in name)
        for name, each in model.named_parameters()
    )


def _trained_unused_blocks(model: Any) -> list[str]:
    """Names of vision blocks with trained parameters behind the last one whose output is used.

    LLaVA takes the hidden states of a layer before the last (`vision_feature_layer`: -2).
    """
    base = base_of(model)
    taken = getattr(base.config, "vision_feature_layer", None)
    if taken is None:
        return []
    names = {id(module): name for name, module in base.named_modules()}
    idle = []
    for stack in vision_stacks(base):
        # hidden states are counted from that of the embedding, so that there is one more than blocks
        last = max(each % (len(stack) + 1) for each in ([taken] if isinstance(taken, int) else taken))
        idle += [
            f"{names[id(stack)]}.{number}"
            for number in range(last, len(stack))
            if any(each.requires_grad for each in stack[number].parameters())
        ]
    return idle
