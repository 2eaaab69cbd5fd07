"""What of a model is trained: the table that a run prints, counted on the modules that it really has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmtrain.layers import Part, part_of

__all__ = ["TrainablePart", "count_parameters", "describe_trainable", "list_trainable", "widen_trained_copies"]

_ORDER: tuple[Part, ...] = ("vision", "connector", "language", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainablePart:
    """One line of the table."""

    part: Part
    """Vision tower, connector, language model or output head."""
    adapted: int
    """Layers with an adapter."""
    in_full: int
    """Modules that are trained in all of their weights."""
    trainable: int
    """Parameters that are trained."""
    total: int
    """All parameters, adapters included."""


def list_trainable(model: Any) -> list[TrainablePart]:
    """Counts a model's layers with adapters, modules trained in full, and parameters, by part.

    Args:
        model: A torch module, with or without adapters.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    modules = list(model.named_modules())
    adapted = Counter(part_of(name) for name, module in modules if isinstance(module, LoraLayer))
    in_full = Counter(part_of(name) for name, module in modules if isinstance(module, ModulesToSaveWrapper))
    counts = count_parameters(model.named_parameters())
    return [
        TrainablePart(
            part=part, adapted=adapted[part], in_full=in_full[part], trainable=counts[part][0], total=counts[part][1]
        )
        for part in _ORDER
        if part in counts
    ]


def describe_trainable(parts: Iterable[TrainablePart]) -> str:
    """The table as text, with a sum."""
    parts = list(parts)
    lines = [f"{'trainable':<10} {'adapted layers':>15} {'in full':>8} {'parameters':>14} {'of all':>16} {'share':>8}"]
    for each in parts:
        lines.append(_line(each.part, each.adapted, each.in_full, each.trainable, each.total))
    sums = [sum(getattr(each, name) for each in parts) for name in ("adapted", "in_full", "trainable", "total")]
    return "\n".join([*lines, _line("together", *sums)])


def _line(title: str, adapted: int, in_full: int, trainable: int, total: int) -> str:
    return f"{title:<10} {adapted:>15} {in_full:>8} {trainable:>14,} {total:>16,} {trainable / total:>8.2%}"


def count_parameters(named_parameters: Iterable[tuple[str, Any]]) -> dict[Part, tuple[int, int]]:
    """Trainable and all parameters of each part.

    Args:
        named_parameters: `model.named_parameters()`; 4-bit weights, two of which are packed into a byte, count as what
            they stand for.

    Returns:
        `{part: (trainable, all)}`.
    """
    counts: dict[Part, tuple[int, int]] = {}
    for name, parameter in named_parameters:
        if ".original_module." in name:
            continue  # stands aside while a copy of it is trained
        trainable, total = counts.get(part_of(name), (0, 0))
        packed = getattr(parameter, "quant_state", None)
        size = math.prod(packed.shape) if packed is not None else parameter.numel()
        counts[part_of(name)] = (trainable + size * bool(parameter.requires_grad), total + size)
    return counts


def widen_trained_copies(model: Any) -> None:
    """Holds modules that are trained in full in 32 bit, as peft holds adapters: in 16 bit, small updates round away."""
    import torch

    for name, parameter in model.named_parameters():
        if (
            ".modules_to_save." in name
            and parameter.requires_grad
            and parameter.dtype in (torch.float16, torch.bfloat16)
        ):
            parameter.data = parameter.data.float()
