"""Activations recomputed in the backward pass only as far as memory asks for it.

Recomputing every layer costs a third of a step's arithmetic, and is wasted where memory is free. One forward pass
shows what a layer of each kind keeps when it is not recomputed; from that follow how many layers may keep theirs, and
how many rows go through at once. A second pass, over the heaviest rows of the first epochs, confirms the choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vlmtrain.loaded import base_of

__all__ = ["MEMORY_SHARE", "Candidate", "LayerSwitches", "Measured", "MemoryChoice", "choose", "measure_layers"]

MEMORY_SHARE = 0.9
"""Of the free memory, the part that a step may take; the rest is for fragmentation and rows heavier than foreseen."""

# Under this many tokens a forward pass no longer fills a large GPU, and more rows at once are worth recomputing for.
_ENOUGH_TOKENS = 4096


class LayerSwitches:
    """The layers of a model that can be recomputed, and which of them are.

    Args:
        model: A transformers or peft model.
        without: Layers that are none of its business.
    """

    def __init__(self, model: Any, without: Sequence[Any] = ()) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        others = set(map(id, without))
        modules = (module for module in model.modules() if id(module) not in others)
        self.layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
        self.recomputed = [True] * len(self.layers)
        base_of(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.apply()

    @property
    def kinds(self) -> list[str]:
        """Class name of each layer; layers of one kind keep the same amount."""
        return [type(layer).__name__ for layer in self.layers]

    def apply(self) -> None:
        """Sets the switches."""
        for layer, recomputed in zip(self.layers, self.recomputed, strict=True):
            layer.gradient_checkpointing = recomputed

    def keep_last(self, kept: int) -> None:
        """Recomputes all but the last `kept` layers, whose activations are the first to be freed."""
        self.recomputed = [index < len(self.layers) - kept for index in range(len(self.layers))]
        self.apply()

    def describe(self) -> str:
        """How many layers of each kind are recomputed, in words."""
        if not any(self.recomputed):
            return "no layer is recomputed"
        counts = {kind: [0, 0] for kind in self.kinds}
        for kind, recomputed in zip(self.kinds, self.recomputed, strict=True):
            counts[kind][0] += recomputed
            counts[kind][1] += 1
        return ", ".join(f"{some} of {all_} {kind} recomputed" for kind, (some, all_) in counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a pass with every layer recomputed takes."""

    resting: int
    """Bytes in use before it: weights, and what else stays."""
    peak: int
    """Bytes in use at its height."""
    kept_by_layer: list[int] = field(default_factory=list)
    """For each layer the bytes that it would keep beyond its input, were it not recomputed."""


def measure_layers(switches: LayerSwitches, run_pass: Callable[[], None], device: Any) -> Measured:
    """Runs a pass with every layer recomputed but the first of each kind, whose activations are weighed.

    Args:
        switches: The model's layers.
        run_pass: One forward and backward pass.
        device: The GPU.
    """
    kinds = switches.kinds
    first_of_kind = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    switches.recomputed = [index not in first_of_kind.values() for index in range(len(kinds))]
    switches.apply()
    kept: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for kind, index in first_of_kind.items():
            stack.enter_context(_weigh(switches.layers[index], kept, kind, device))
        torch.cuda.reset_peak_memory_stats(device)
        resting = torch.cuda.memory_allocated(device)
        run_pass()
    peak = torch.cuda.max_memory_allocated(device)
    switches.keep_last(0)
    return Measured(resting=resting, peak=peak, kept_by_layer=[kept.get(kind, 0) for kind in kinds])


@contextlib.contextmanager
def _weigh(layer: Any, kept: dict[str, int], kind: str, device: Any) -> Iterator[None]:
    before = 0

    def start(*_: Any) -> None:
        nonlocal before
        before = torch.cuda.memory_allocated(device)

    def end(*_: Any) -> None:
        kept.setdefault(kind, max(0, torch.cuda.memory_allocated(device) - before))

    hooks = [layer.register_forward_pre_hook(start), layer.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to cut the global batch into forward passes."""

    rows: int
    """Rows of one forward pass."""
    tokens: int
    """Tokens of its heaviest forward pass in the epochs that were searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryChoice:
    """What fits."""

    candidate: Candidate
    """How the global batch is cut."""
    kept: int
    """Layers, from the last, that are not recomputed."""
    bytes: int
    """What the heaviest pass is expected to take in all."""


def choose(measured: Measured, tokens: int, candidates: Sequence[Candidate], budget_bytes: int) -> MemoryChoice:
    """Chooses rows a pass and layers to recompute.

    The largest pass in which nothing is recomputed wins; where no pass of enough tokens to fill the GPU fits that way,
    the smallest such pass, with as many layers kept as fit.

    Args:
        measured: A pass with every layer recomputed.
        tokens: Tokens of that pass.
        candidates: Ways to cut the global batch, by falling rows.
        budget_bytes: What may be in use at the height of a pass.
    """
    whole = sum(measured.kept_by_layer)

    def scale(value: int, candidate: Candidate) -> int:
        return round(value * candidate.tokens / tokens)

    def bare(candidate: Candidate) -> int:
        return measured.resting + scale(measured.peak - measured.resting, candidate)

    free = [candidate for candidate in candidates if bare(candidate) + scale(whole, candidate) <= budget_bytes]
    if free and (free[0].tokens >= _ENOUGH_TOKENS or free[0] is candidates[0]):
        best = free[0]
        return MemoryChoice(candidate=best, kept=len(measured.kept_by_layer), bytes=bare(best) + scale(whole, best))
    possible = [candidate for candidate in candidates if bare(candidate) <= budget_bytes] or [candidates[-1]]
    filling = [candidate for candidate in possible if candidate.tokens >= _ENOUGH_TOKENS]
    best = filling[-1] if filling else possible[0]
    used, kept = bare(best), 0
    for layer_bytes in reversed(measured.kept_by_layer):
        if used + scale(layer_bytes, best) > budget_bytes:
            break
        used += scale(layer_bytes, best)
        kept += 1
    return MemoryChoice(candidate=best, kept=kept, bytes=used)
