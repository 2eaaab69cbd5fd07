"""Fits a run to the GPU: rows of a forward pass, and layers to recompute, by passes tried before the first step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from vlmdata.errors import ResourceError
from vlmtrain.config import FitConfig
from vlmtrain.loaded import LoadedModel
from vlmtrain.memory import OPTIMIZER_BYTES
from vlmtrain.preflight import CheckedSplit
from vlmtrain.processes import gather
from vlmtrain.speed.checkpointing import (
    MEMORY_SHARE,
    Candidate,
    LayerSwitches,
    Measured,
    MemoryChoice,
    choose,
    measure_layers,
)
from vlmtrain.speed.trainer import Arrangement
from vlmtrain.speed.trials import TrialPass

__all__ = ["fit_to_memory"]

_TRIES = 6


def fit_to_memory(
    config: FitConfig, train: CheckedSplit, loaded: LoadedModel, arrangement: Arrangement, say: Callable[[str], None]
) -> None:
    """Chooses rows of a pass and layers to recompute; the global batch stays.

    Args:
        config: The run's settings.
        train: The rows with their lengths.
        loaded: The model on a GPU.
        arrangement: Gets `switches`, and a `plan` with other rows and passes.
        say: Prints a line.

    Raises:
        ResourceError: Not even one row fits.
    """
    device = next(loaded.model.parameters()).device
    switches = arrangement.switches = LayerSwitches(loaded.model, without=arrangement.frozen)
    rows_a_step = arrangement.rows * arrangement.passes
    fixed = config.speed.micro_batch is not None or config.speed.batch_tokens is not None
    sizes = [arrangement.rows] if fixed else [n for n in range(rows_a_step, 0, -1) if rows_a_step % n == 0]
    heaviest = {size: _heaviest(train, arrangement, rows_a_step, size) for size in sizes}
    candidates = [Candidate(rows=size, tokens=tokens) for size, (_, tokens) in heaviest.items()]

    def run(size: int) -> None:
        TrialPass([train.rows[row] for row in heaviest[size][0]], loaded, arrangement).run()

    size, measured = _measure(switches, [n for n in sizes if n <= arrangement.rows], run, device)
    choice = _confirm(switches, candidates, (measured, heaviest[size][1]), run, config, loaded.model)
    peak = torch.cuda.max_memory_allocated(device)
    choice = _agree(choice, candidates)
    switches.keep_last(choice.kept)
    rows = choice.candidate.rows
    arrangement.plan = dataclasses.replace(arrangement.plan, rows=rows, passes=rows_a_step // rows)
    say(
        f"{arrangement.rows} rows a pass, {arrangement.passes} passes a step; {switches.describe()}; the heaviest pass "
        f"({choice.candidate.tokens} tokens) took {peak / 1e9:.1f} GB, {choice.bytes / 1e9:.1f} GB were expected"
    )


def _measure(
    switches: LayerSwitches, sizes: list[int], run: Callable[[int], None], device: Any
) -> tuple[int, Measured]:
    """Weighs the layers in a pass of the first of some falling sizes that fits."""
    for size in sizes:
        try:
            run(size)  # once unmeasured: kernels are compiled, and their work space is kept from then on
            return size, measure_layers(switches, functools.partial(run, size), device)
        except torch.cuda.OutOfMemoryError:
            continue
    raise ResourceError(
        f"the GPU's memory holds not even a forward pass of {sizes[-1]} rows with every layer recomputed; "
        "try --load-in 4bit, or a set with a smaller --max-side"
    )


def _confirm(
    switches: LayerSwitches,
    candidates: list[Candidate],
    measured: tuple[Measured, int],
    run: Callable[[int], None],
    config: FitConfig,
    model: Any,
) -> MemoryChoice:
    """Tries the choice on the heaviest pass of the run, and asks for less until it fits."""
    device = next(model.parameters()).device
    budget = _budget(config, model)
    for _ in range(_TRIES):
        choice = choose(*measured, candidates, budget)
        switches.keep_last(choice.kept)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            run(choice.candidate.rows)
        except torch.cuda.OutOfMemoryError:
            budget = round(budget * MEMORY_SHARE)
        else:
            return choice
    raise ResourceError("no choice of layers to recompute fitted in the GPU's memory; try --load-in 4bit")


def _agree(choice: MemoryChoice, candidates: list[Candidate]) -> MemoryChoice:
    """What fits on the fullest of several GPUs; their steps must be cut alike."""
    rows, kept = min(gather((choice.candidate.rows, choice.kept)))
    [candidate] = [candidate for candidate in candidates if candidate.rows == rows]
    return dataclasses.replace(choice, candidate=candidate, kept=kept)


def _budget(config: FitConfig, model: Any) -> int:
    """Bytes that may be in use at the height of a pass, the optimizer's state set aside."""
    device = next(model.parameters()).device
    used: int = torch.cuda.memory_allocated(device)
    available: int = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if config.speed.gpu_memory_gb is not None:
        available = min(available, round(config.speed.gpu_memory_gb * 2**30))
    name = config.optimizer.resolve_optimizer(config.adapter.method, on_gpu=True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return int(used + MEMORY_SHARE * (available - used) - trained * OPTIMIZER_BYTES[name])


def _heaviest(train: CheckedSplit, arrangement: Arrangement, rows_a_step: int, size: int) -> tuple[list[int], int]:
    """The rows of the heaviest pass of a run with `size` rows a pass, and its tokens."""
    plan = dataclasses.replace(arrangement.plan, rows=size, passes=rows_a_step // size)
    rows = plan.heaviest()
    return rows, plan.cost(rows)
