"""Where the time of a step goes: waiting for rows or computing, and how many tokens went through."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["StepClock"]


class StepClock:
    """Takes the time of steps without waiting for the GPU in between.

    A step lasts from the last one's log to its own. The log reads the loss, which waits for the GPU.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._tokens: torch.Tensor | int = 0
        self._steps = 0

    def restart(self) -> None:
        """Forgets what has passed: it belongs to no step."""
        self._began = time.perf_counter()
        self._waited, self._tokens, self._steps = 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, the trainer waits for the loader."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked
        self._steps += 1

    def count_tokens(self, tokens: torch.Tensor) -> None:
        """Adds tokens that go through the model in a step, padding included.

        Args:
            tokens: `()` int64 of all processes together, on any device: it is read with the log and not before, so that
                no step waits for it.
        """
        self._tokens = self._tokens + tokens

    def read(self) -> dict[str, float]:
        """Figures of the steps since the last call, and starts anew.

        Returns:
            `step_seconds` and `waiting_seconds` of one step on average, in this process, and `tokens_per_second` of all
            processes together: their tokens by the seconds of this one, which waits for the others in each step.
        """
        seconds = time.perf_counter() - self._began
        steps = max(1, self._steps)
        figures = {
            "step_seconds": round(seconds / steps, 4),
            "waiting_seconds": round(self._waited / steps, 4),
            "tokens_per_second": round(int(self._tokens) / seconds, 1),
        }
        self.restart()
        return figures
