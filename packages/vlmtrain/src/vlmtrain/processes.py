"""The processes of a run on several GPUs, as torchrun describes them: which one this is, and what they tell each other.

One process is the whole group where nothing says otherwise. `vlmtrain.launch` starts groups.
"""

from __future__ import annotations

import functools
import os
from typing import Any, TypeVar

from vlmdata.errors import ConfigError, MissingDependencyError

__all__ = [
    "agree_on_largest",
    "claim_device",
    "gather",
    "is_main_process",
    "leave_group",
    "process_count",
    "process_index",
    "say",
]

Value = TypeVar("Value")


def process_count() -> int:
    """Processes of the group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the one that writes and speaks."""
    return process_index() == 0


def say(line: str) -> None:
    """Prints a line at once: what was chosen must be seen before the wait. Of several processes the first speaks."""
    if is_main_process():
        print(line, flush=True)


def claim_device(gpus: int) -> None:
    """Makes the GPU of this process the current one; call before anything is loaded.

    Args:
        gpus: What `--gpus` asks for.

    Raises:
        ConfigError: The group has another number of processes.
        MissingDependencyError: There are fewer GPUs.
    """
    import torch

    if gpus != process_count():
        raise ConfigError(
            f"gpus {gpus}, but the run has {process_count()} processes: start it with `vlmtrain fit --gpus {gpus}`, "
            f"or with `torchrun --nproc-per-node {gpus} -m vlmtrain fit … --gpus {gpus}`"
        )
    if not torch.cuda.is_available():
        return
    if gpus > torch.cuda.device_count():
        raise MissingDependencyError(
            f"gpus {gpus}: {torch.cuda.device_count()} visible to torch (CUDA_VISIBLE_DEVICES chooses among them)"
        )
    if gpus > 1:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def gather(value: Value) -> list[Value]:
    """One value of each process, in their order, in every one of them."""
    if process_count() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * process_count()
    torch.distributed.all_gather_object(values, value, group=_control_group())
    return values


def agree_on_largest(value: int) -> int:
    """The largest of all processes' values, in every one of them; waits for all."""
    if process_count() == 1:
        return value
    import torch
    import torch.distributed

    tensor = torch.tensor([value])
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=_control_group())
    return int(tensor)


def leave_group() -> None:
    """Ends the group's connections, which would otherwise complain at the end of the process."""
    if process_count() > 1:
        import torch.distributed

        if torch.distributed.is_initialized():
            _control_group.cache_clear()
            torch.distributed.destroy_process_group()


@functools.cache
def _control_group() -> Any:
    # on the CPU: what is agreed on between steps must not wait for the GPU's queue
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        # What is agreed on before there is a trainer, which takes the group over.
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return torch.distributed.new_group(backend="gloo")
