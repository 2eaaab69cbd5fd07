"""What the GPU in hand can compute with, and what an older one changes."""

from __future__ import annotations

from typing import Any

from vlmdata.errors import MissingDependencyError

__all__ = ["describe_limits", "half_precision", "limit_memory", "memory_bytes", "require_gpu"]

_BFLOAT16_SINCE = (8, 0)


def half_precision() -> Any:
    """The 16-bit torch dtype to compute in: bfloat16, or float16 on a GPU below compute capability 8.0.

    torch calls bfloat16 supported on older GPUs too, where it is emulated and slower than 32 bit.
    """
    import torch

    if torch.cuda.is_available() and torch.cuda.get_device_capability() < _BFLOAT16_SINCE:
        return torch.float16
    return torch.bfloat16


def describe_limits(family: str | None) -> list[str]:
    """What a GPU below compute capability 8.0 changes, in words; nothing on a newer one or without a GPU.

    Args:
        family: Name of the model's family, if it is a known one.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    capability = torch.cuda.get_device_capability()
    if capability >= _BFLOAT16_SINCE:
        return []
    lines = [
        f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, below 8.0: "
        "float16 with loss scaling in place of bfloat16 (gradients that overflow skip a step), no flash attention, "
        "no TF32; losses differ from those of a newer GPU in the third digit"
    ]
    if family == "gemma3":
        lines.append(
            "Gemma 3's activations overflow in float16: the unsloth backend computes them in float32, the transformers "
            "backend does not; use --load-in 32bit there"
        )
    return lines


def require_gpu(what: str) -> None:
    """Refuses what only a GPU can do where there is none.

    Args:
        what: The option that asks for it.

    Raises:
        MissingDependencyError: No GPU is visible to torch.
    """
    import torch

    if not torch.cuda.is_available():
        raise MissingDependencyError(f"{what} needs a GPU, and none is visible to torch")


def limit_memory(gib: float | None) -> None:
    """Lets this process take no more than so many GiB of its GPU's memory, if there is a GPU and a limit."""
    import torch

    if gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))


def memory_bytes(limit_gib: float | None) -> int:
    """Memory of the first GPU, or the limit where that is less."""
    import torch

    total: int = torch.cuda.get_device_properties(0).total_memory
    return total if limit_gib is None else min(total, round(limit_gib * 2**30))
