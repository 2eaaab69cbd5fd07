"""The blocks of a vision tower compiled, one graph for all of them.

A block is some hundred small operations on either way through it: norms, rotations, casts of adapters. One by one they
cost the host more time than the GPU needs for them, which then waits. Compiled, most of them are part of a few kernels.
Unsloth does this for the layers of the language model; here it is done for the tower.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch

from vlmtrain.layers import part_of
from vlmtrain.loaded import base_of

__all__ = ["compile_vision_blocks"]

Tracing = Callable[[], contextlib.AbstractContextManager[None]]
MakeTraceable = Callable[[Iterable[type]], Tracing]


def compile_vision_blocks(
    model: Any,
    say: Callable[[str], None],
    *,
    make_traceable: MakeTraceable,
    backend: str = "inductor",
) -> int:
    """Compiles the blocks of a model's vision tower, for training; elsewhere they stay what they are.

    Args:
        model: A transformers or peft model, its adapters in place.
        say: Prints a line: where a block cannot be compiled, it goes on as it was.
        make_traceable: Of the backend; see `vlmtrain.backends.Backend`.
        backend: Of torch.compile.

    Returns:
        How many blocks.
    """
    kinds: dict[type, list[Any]] = {}
    for name, stack in base_of(model).named_modules():
        if isinstance(stack, torch.nn.ModuleList) and part_of(name) == "vision" and len(set(map(type, stack))) == 1:
            kinds.setdefault(type(stack[0]), []).extend(stack)
    for kind, blocks in kinds.items():
        tracing = make_traceable({type(module) for block in blocks for module in block.modules()})
        forward = _compiled(kind, say, tracing, backend)
        for block in blocks:
            block.forward = types.MethodType(forward, block)
    return sum(map(len, kinds.values()))


def _compiled(kind: Any, say: Callable[[str], None], tracing: Tracing, backend: str) -> Callable[..., Any]:
    """The forward of a kind of blocks: compiled while it trains, and as long as that works."""
    plain = kind.forward
    # Sizes are symbols from the start: pictures differ, and a graph for each would take minutes.
    compiled = torch.compile(plain, dynamic=True, fullgraph=True, backend=backend)
    gave_up = False

    @functools.wraps(plain)
    def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal gave_up
        if gave_up or not block.training:
            return plain(block, *args, **kwargs)
        try:
            with tracing():
                return compiled(block, *args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            gave_up = True
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            say(f"{kind.__name__} is not compiled: {reason[:200]}")
        return plain(block, *args, **kwargs)

    return forward
