"""Settings of speed; none of them changes what is learned, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlmdata.errors import ConfigError
from vlmtrain.value_checks import not_positive

__all__ = ["Batching", "SpeedConfig"]

Attention = Literal["auto", "varlen", "loop"]
Batching = Literal["auto", "plain", "length", "packed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """How the work of a step is arranged."""

    attention: Attention = "auto"
    """Attention of the vision tower. varlen: all pictures or windows in one call. loop: transformers' own way.
    auto: varlen where the family has a use for it and the device has the kernel, and kernels for windows where most
    blocks attend within windows."""
    batching: Batching = "auto"
    """Arrangement of rows. plain: in random order, padded to the longest. length: rows of like length together.
    packed: one after the other without padding, for the Qwen families. auto: packed where it is possible on a GPU,
    else length where rows differ, else plain."""
    batch_tokens: int | None = None
    """Tokens of one forward pass, image tokens included, instead of --batch-size rows; with length or packed."""
    micro_batch: int | None = None
    """Rows of one forward pass; the global batch stays --batch-size × --grad-accum. Unset: on a GPU as many as its
    memory holds, else --batch-size."""
    gpu_memory_gb: float | None = None
    """Most memory of each GPU to use, in GiB. Unset: all that is free."""
    compile_vision: Literal["auto", "on", "off"] = "auto"
    """Whether the blocks of the vision tower are compiled for training. auto: on a GPU, in a run of 200 steps or more,
    where the tower is trained and a pass takes less time that way; it is tried before the first step."""
    profile_steps: int = 0
    """Steps to profile, from the 16th on; what the GPU did in them goes to profile.txt in the run's folder."""
    loss_on: Literal["auto", "supervised", "all"] = "auto"
    """Positions whose logits are computed. supervised: those that carry loss. all: every one. auto: supervised with
    Unsloth, all with transformers, which is the reference."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range, or two of them clash.
        """
        problems = not_positive(self, "batch_tokens", "micro_batch", "gpu_memory_gb")
        if self.profile_steps < 0:
            problems.append(f"profile_steps must not be negative, as {self.profile_steps!r} is")
        if self.batch_tokens is not None and self.micro_batch is not None:
            problems.append("batch_tokens clashes with micro_batch: both say how much goes into one forward pass")
        if self.batch_tokens is not None and self.batching == "plain":
            problems.append("batch_tokens clashes with batching 'plain': it needs 'length' or 'packed'")
        if problems:
            raise ConfigError(problems)
