"""Runs that are lost while they go on: a loss that is no number, gradients that explode or that are not there."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

from vlmdata.errors import ToolkitError

__all__ = ["DivergedError", "GradientWatch", "make_divergence_callback"]

_REMEMBERED = 50
_EXPLODED = 1000.0
"""So many times the norm of the steps before; a bad batch or a restart of the rate stays far below."""


class DivergedError(ToolkitError):
    """The loss is not a number, and neither are the weights from there on."""


class GradientWatch:
    """Looks at the log of each step, and warns once of each thing that it finds."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=_REMEMBERED)
        self._warned: set[str] = set()

    def look(self, step: int, logs: dict[str, Any]) -> str | None:
        """Judges what was logged.

        Args:
            step: The last step that the log is of.
            logs: `loss` and `grad_norm` of training, or `eval_loss`.

        Returns:
            A warning, where there is reason for one.

        Raises:
            DivergedError: A loss is not a finite number.
        """
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise DivergedError(
                    f"step {step}: the {name.replace('_', ' ')} is {logs[name]}, nothing can be learned from here on; "
                    "checkpoints of earlier steps are whole; try a smaller --lr or a longer --warmup"
                )
        norm = logs.get("grad_norm")
        if norm is None or not math.isfinite(norm):
            # with float16 a gradient may overflow: the step is left out, and the loss scaled down
            return None
        usual = statistics.median(self._norms) if self._norms else None
        self._norms.append(norm)
        if norm == 0:
            return self._once("zero", f"warning: step {step}: the gradient is zero, nothing is learned")
        if usual and norm > _EXPLODED * usual:
            return self._once(
                "exploded",
                f"warning: step {step}: the gradient's norm is {norm:.4g}, {norm / usual:,.0f} times that of the steps "
                "before; if the loss does not fall, compare the first steps with those of --backend transformers",
            )
        return None

    def _once(self, kind: str, words: str) -> str | None:
        if kind in self._warned:
            return None
        self._warned.add(kind)
        return words


def make_divergence_callback(say: Callable[[str], None]) -> Any:
    """A trainer's callback that ends a run whose loss is no number, and warns of gradients that cannot be right.

    Args:
        say: Prints a line.
    """
    from transformers import TrainerCallback

    watch = GradientWatch()

    class Divergence(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped here
        """Looks at each log."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            warning = watch.look(state.global_step, logs)
            if warning:
                say(warning)

    return Divergence()
