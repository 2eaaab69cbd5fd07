"""Passes tried before the first step: as the trainer will do them, and nothing is learned from them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import torch

from vlmtrain.loaded import LoadedModel
from vlmtrain.processes import gather
from vlmtrain.speed.trainer import Arrangement

__all__ = ["TrialPass", "keep_compiled_if_right"]

# A norm further off than this comes from no rounding, and from no other draw of dropout.
_MOST_RATIO = 2.0


class TrialPass:
    """A forward and backward pass.

    Args:
        rows: Of one pass.
        loaded: The model.
        arrangement: How the trainer will run its passes.
    """

    def __init__(self, rows: list[dict[str, Any]], loaded: LoadedModel, arrangement: Arrangement) -> None:
        assert arrangement.collate is not None
        self._loaded, self._arrangement = loaded, arrangement
        self._device = next(loaded.model.parameters()).device
        self._collated = arrangement.collate(rows)
        self._batch = {
            key: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for key, value in self._collated.items()
        }

    def run(self) -> None:
        """Runs it; random numbers are drawn as if it had not been.

        Raises:
            RuntimeError: Of torch, of its memory too; what the pass held is let go of.
        """
        self._run()
        self._loaded.model.zero_grad(set_to_none=True)

    def gradient_norm(self) -> float:
        """Runs it.

        Returns:
            The norm of the gradients of all that is trained.

        Raises:
            RuntimeError: Of torch, of its memory too; what the pass held is let go of.
        """
        self._run()
        gradients = [each.grad for each in self._loaded.model.parameters() if each.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self._loaded.model.zero_grad(set_to_none=True)
        return norm

    def _run(self) -> None:
        model = self._loaded.model
        model.train()
        self._arrangement.set_recomputation()
        dtype = self._loaded.dtype
        half = dtype if dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
        on_gpu = self._device.type == "cuda"
        devices = [self._device] if on_gpu else []
        with torch.random.fork_rng(devices=devices):
            try:
                with self._arrangement.attention(model, self._collated):
                    with torch.autocast(self._device.type, dtype=half, enabled=on_gpu):
                        if self._arrangement.score is None:
                            loss = model(**self._batch, use_cache=False).loss
                        else:
                            loss, _ = self._arrangement.sum_of_losses(model, self._batch)
                    loss.backward()
            except RuntimeError:
                _forget(model)
                raise


def _forget(model: Any) -> None:
    """Lets go of gradients, and of memory that nobody uses."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()


def keep_compiled_if_right(trial: TrialPass, say: Callable[[str], None]) -> bool:
    """Holds the gradients of compiled layers against those of the same layers as they are.

    A compiler's faults show in nothing else at first: see `vlmtrain.speed.compiler_race`.

    Args:
        trial: A pass of the run.
        say: Prints a line.

    Returns:
        False where they differ in any process: then nothing is compiled from here on.
    """
    ratio, obstacle = None, ""
    try:
        compiled = trial.gradient_norm()
        with torch.compiler.set_stance("force_eager"):
            ratio = _ratio(compiled, trial.gradient_norm())
    except torch.OutOfMemoryError:
        obstacle = "takes more memory than there is"
    except RuntimeError as error:
        # the run itself may go well, or says more of it
        obstacle = f"fails: {' '.join(str(error).split())[:200]}"
    if torch.cuda.is_available():
        # what uncompiled layers took is free for the run, and no part of its peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ratios = [each for each in gather(ratio) if each is not None]
    if not ratios:
        say(f"compiled layers: their gradients are not checked, a pass {obstacle}")
        return True
    worst = max(ratios, key=_distance)
    found = f"gradients of the first pass have {worst:.2f} times the norm that they have without compiling"
    if _distance(worst) <= math.log(_MOST_RATIO):
        say(f"compiled layers: {found}")
        return True
    torch.compiler.set_stance("force_eager")
    say(f"warning: compiled layers: {found}; nothing is compiled in this run")
    return False


def _ratio(compiled: float, plain: float) -> float:
    if plain:
        return compiled / plain
    return math.inf if compiled else 1.0


def _distance(ratio: float) -> float:
    """How far from 1 a ratio is, either way."""
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf
