"""The blocks of a vision tower compiled, one graph for all of a kind.

A block is some hundred small operations on either way through it: norms, rotations, casts of adapters. One by one they
cost the host more time than the GPU needs for them, which then waits. Compiled, most of them are part of a few kernels.
Unsloth does this for the layers of the language model; here it is done for the tower.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vlmtrain.layers import vision_stacks
from vlmtrain.loaded import base_of
from vlmtrain.processes import gather
from vlmtrain.speed.attention import takes_any_size

__all__ = ["CompiledBlocks", "compile_vision_blocks", "keep_if_faster"]

Tracing = Callable[[], contextlib.AbstractContextManager[None]]
MakeTraceable = Callable[[Iterable[type]], Tracing]

_TIMED_PASSES = 3
# Matrices of odd widths, like the 3,420 columns of Qwen2.5-VL's MLP, take a GPU twice as long as padded ones. Inductor
# pads where a timing of its own says that it pays; a graph made for recomputation may be told otherwise than the one of
# the forward pass, keeps tensors of other shapes, and the backward pass fails. So all are padded, without a timing.
_INDUCTOR_OPTIONS = {"shape_padding": True, "force_shape_pad": True}


@dataclass(slots=True)
class CompiledBlocks:
    """The compiled blocks of a model."""

    count: int = 0
    """How many there are."""
    enabled: bool = True
    """Whether they run compiled; as they were before, where not."""


def compile_vision_blocks(
    model: Any, say: Callable[[str], None], *, make_traceable: MakeTraceable, backend: str = "inductor"
) -> CompiledBlocks:
    """Compiles the blocks of a model's vision tower, for training; elsewhere they stay what they are.

    Args:
        model: A transformers or peft model, its adapters in place.
        say: Prints a line: where a block cannot be compiled, all go on as they were.
        make_traceable: Of the backend; see `vlmtrain.backends.Backend`.
        backend: Of torch.compile.
    """
    # Where pictures differ in size, sizes are symbols from the start: a graph for each would take minutes. Towers that
    # take one size get graphs of that size; torch makes the batch a symbol when it changes.
    dynamic = True if takes_any_size(model) else None
    options = _INDUCTOR_OPTIONS if backend == "inductor" else None
    compile_kind = functools.partial(torch.compile, dynamic=dynamic, fullgraph=True, backend=backend, options=options)
    kinds: dict[type, list[Any]] = {}
    for stack in vision_stacks(base_of(model)):
        kinds.setdefault(type(stack[0]), []).extend(stack)
    compiled = CompiledBlocks(count=sum(map(len, kinds.values())))
    for kind, blocks in kinds.items():
        tracing = make_traceable({type(module) for block in blocks for module in block.modules()})
        forward = _compile(kind, compiled, say, tracing, compile_kind)
        for block in blocks:
            block.forward = types.MethodType(forward, block)
    return compiled


def _compile(
    kind: Any,
    blocks: CompiledBlocks,
    say: Callable[[str], None],
    tracing: Tracing,
    compile_kind: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[..., Any]:
    """The forward of a kind of blocks: compiled while it trains, and as long as that works."""
    plain = kind.forward
    compiled = compile_kind(plain)

    @functools.wraps(plain)
    def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
        if not blocks.enabled or not block.training:
            return plain(block, *args, **kwargs)
        try:
            with tracing():
                return compiled(block, *args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            blocks.enabled = False
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"the vision tower is not compiled: {kind.__name__}: {reason[:200]}")
        return plain(block, *args, **kwargs)

    return forward


def keep_if_faster(
    blocks: CompiledBlocks,
    run_pass: Callable[[], None],
    wait: Callable[[], None],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Times a pass with and without compiled blocks, and leaves on what takes less time, alike in all processes.

    Args:
        blocks: Switched on or off.
        run_pass: A forward and backward pass of the run.
        wait: Returns when the device has done what it was given.
        say: Prints a line.
        clock: Seconds from some moment.
    """

    def time_pass(*, compiled: bool) -> float:
        blocks.enabled = compiled
        times = []
        try:
            run_pass()  # once untimed: kernels are chosen in the first pass of a shape
            wait()
            for _ in range(_TIMED_PASSES):
                began = clock()
                run_pass()
                wait()
                times.append(clock() - began)
        except torch.OutOfMemoryError:
            # what recomputation leaves room for was found out with compiled blocks, which keep less
            return math.inf
        return statistics.median(times)

    timed = gather((time_pass(compiled=False), time_pass(compiled=True)))
    plain, compiled = (max(times) for times in zip(*timed, strict=True))
    blocks.enabled = compiled < plain

    def told(seconds: float) -> str:
        return f"{seconds:.3f} s" if seconds < math.inf else "more memory than there is"

    say(
        f"a pass takes {told(compiled)} with the {blocks.count} blocks of the vision tower compiled and {told(plain)} "
        f"without: they are {'compiled' if blocks.enabled else 'left as they are'}"
    )
