"""cuDNN's attention, which torch takes by itself on Hopper and later GPUs: fast, with two faults around it.

With heads of 256 channels, as Gemma 3 has them, and a mask, gradients were garbage in compiled layers on an H200, and
right with the memory-efficient one (benchmarks/compiled_gradients.py). Its backward pass for such heads was mended in
June 2026 (pull request 326 of cudnn-frontend); whether that is the reason is not known. And it makes a plan for each
length that it has not met, which takes long: see `vlmtrain.speed.rounding`.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmtrain.loaded import base_of

__all__ = ["leave_for_wide_heads", "prefers_cudnn"]

_HOPPER = (9, 0)
_MOST_CHANNELS = 128


def leave_for_wide_heads(model: Any) -> int:
    """Has torch take another attention in this process where the language model's heads are too wide for cuDNN's.

    Args:
        model: A transformers or peft model, before anything of it is compiled.

    Returns:
        Channels of a head, or 0 where nothing changes.
    """
    text = base_of(model).config.get_text_config()
    channels = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    if channels <= _MOST_CHANNELS or not prefers_cudnn(next(model.parameters()).device):
        return 0
    torch.backends.cuda.enable_cudnn_sdp(False)
    return channels


def prefers_cudnn(device: torch.device) -> bool:
    """Whether torch takes cuDNN's attention there by itself."""
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return capability >= _HOPPER
