"""Attention within windows of a few dozen tokens, as most blocks of Qwen2.5-VL's vision tower have it.

The variable-length kernel is made for long sequences: with windows of 64 tokens it works at a sixth of the speed at
which memory could give it their bytes, and the rotation of queries and keys before it goes through memory once more.
Here both are one kernel each way (`vlmtrain.speed.window_kernels`), for training on GPUs; torch sees two operators that
it neither looks into nor fuses.
"""

# torch has left the decorators of operators without types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import importlib.util
from typing import Any

import torch

__all__ = ["LONGEST_WINDOW", "attend_in_windows", "window_obstacle"]

LONGEST_WINDOW = 64
"""Tokens that the kernels take at most."""
_MOST_CHANNELS = 128
_AMPERE = (8, 0)


def window_obstacle(device: torch.device, dtype: torch.dtype, tokens: int, channels: int) -> str | None:
    """Why the kernels cannot run there, or None.

    Args:
        device: Where the model is.
        dtype: Of its activations.
        tokens: Of a window.
        channels: Of a head.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _AMPERE:
        return "the device is no GPU of compute capability 8.0"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"activations are {dtype}, and the kernels take 16-bit ones"
    if tokens > LONGEST_WINDOW:
        return f"windows have {tokens} patches, and the kernels take {LONGEST_WINDOW}"
    if channels % 2 or channels > _MOST_CHANNELS:
        return f"heads have {channels} channels"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def attend_in_windows(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, boundaries: torch.Tensor, scale: float
) -> torch.Tensor:
    """Rotates queries and keys and attends within each window.

    Args:
        qkv: `(T, 3, H, D)` queries, keys and values as projected.
        cos: `(T, D)` cosines of the rotation, both halves of D alike, as rotary embeddings have them.
        sin: `(T, D)` sines, likewise.
        boundaries: `(N + 1,)` int32 beginnings of the windows and their end. None may be longer than `LONGEST_WINDOW`:
            it is not looked at, which would wait for the GPU, and what lies beyond would be left unset.
        scale: Of the scores.

    Returns:
        `(T, H, D)`.
    """
    out: torch.Tensor = _forward(qkv, cos, sin, boundaries, scale)
    return out


@torch.library.custom_op(
    "vlmtrain::attend_in_windows",
    mutates_args=(),
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor boundaries, float scale) -> Tensor",
)
def _forward(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, boundaries: torch.Tensor, scale: float
) -> torch.Tensor:
    from vlmtrain.speed.window_kernels import run_forward

    return run_forward(qkv.contiguous(), cos.contiguous(), sin.contiguous(), boundaries, scale, LONGEST_WINDOW)


@torch.library.custom_op(
    "vlmtrain::attend_in_windows_backward",
    mutates_args=(),
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor boundaries, float scale, Tensor d_out) -> Tensor",
)
def _backward(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    boundaries: torch.Tensor,
    scale: float,
    d_out: torch.Tensor,
) -> torch.Tensor:
    from vlmtrain.speed.window_kernels import run_backward

    qkv, cos, sin, d_out = (tensor.contiguous() for tensor in (qkv, cos, sin, d_out))
    return run_backward(qkv, cos, sin, boundaries, scale, LONGEST_WINDOW, d_out)


@_forward.register_fake
def _(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, boundaries: torch.Tensor, scale: float) -> torch.Tensor:
    tokens, _three, heads, channels = qkv.shape
    return qkv.new_empty(tokens, heads, channels)


@_backward.register_fake
def _(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    boundaries: torch.Tensor,
    scale: float,
    d_out: torch.Tensor,
) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, d_out: torch.Tensor) -> tuple[Any, ...]:
    qkv, cos, sin, boundaries = ctx.saved_tensors
    return _backward(qkv, cos, sin, boundaries, ctx.scale, d_out), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep_inputs)
