"""What the GPU does in a step: the time it is busy, the kernels that take it, and how many are launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["StepProfile"]

_KERNELS_SHOWN = 40
_NAME_WIDTH = 120


class StepProfile(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped here
    """Profiles some steps of a training run and writes a table of them.

    Args:
        out: Text file to write.
        first: Steps to let pass before; compilation should be over by then.
        steps: How many.
    """

    def __init__(self, out: Path, *, first: int = 15, steps: int = 2) -> None:
        self.out = out
        self.first = first
        self.steps = steps
        self._profiler: Any = None
        self._has_written = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts before the first step."""
        from torch.profiler import ProfilerActivity, profile

        if state.global_step == self.first:
            # The host's operations would be a million events, which take longer to sum up than a run.
            self._profiler = profile(activities=[ProfilerActivity.CUDA])
            self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops after the last, and writes."""
        if state.global_step == self.first + self.steps:
            self._finish(self.steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes what there is of a run that ended earlier, and says so where no step was profiled."""
        self._finish(max(1, state.global_step - self.first))
        if not self._has_written:
            print(f"profile: none was made, as step {self.first + 1} is not among those just done", flush=True)

    def _finish(self, steps: int) -> None:
        import torch

        if self._profiler is None:
            return
        torch.cuda.synchronize()
        self._profiler.stop()
        self.out.write_text(_describe(self._profiler.key_averages(), steps), encoding="utf-8")
        self._profiler = None
        self._has_written = True


def _describe(events: Any, steps: int) -> str:
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    busy = sum(event.self_device_time_total for event in kernels) / 1e3 / steps
    launches = sum(event.count for event in kernels) / steps
    lines = [f"a step: GPU busy {busy:.1f} ms, {launches:.0f} kernels launched", ""]
    lines += [f"{'kernel':{_NAME_WIDTH}} {'ms a step':>10} {'launches':>9}"]
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:_KERNELS_SHOWN]:
        spent = event.self_device_time_total / 1e3 / steps
        lines.append(f"{event.key[:_NAME_WIDTH]:{_NAME_WIDTH}} {spent:10.2f} {event.count / steps:9.0f}")
    return "\n".join(lines) + "\n"
