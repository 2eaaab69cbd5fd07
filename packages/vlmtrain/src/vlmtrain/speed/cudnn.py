"""cuDNN's attention, which torch takes by itself on Hopper and later GPUs: fast, with two drawbacks.

Its backward pass for heads of 256 channels, as Gemma 3's language model has them, was mended for some masks in June
2026 (pull request 326 of cudnn-frontend), after the versions that torch comes with. No wrong gradient of it was seen
here; doing without it costs 0.65 ms a layer (8 rows of 304 tokens, H200). And it makes a plan for each length that it
has not met, which takes long: see `vlmtrain.speed.rounding`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlmtrain.loaded import base_of

__all__ = ["IMPLEMENTATION", "leave_for_wide_heads", "takes_cudnn"]

IMPLEMENTATION = "torch_sdpa_without_cudnn"

_HOPPER = (9, 0)
_MOST_CHANNELS = 128
_OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def leave_for_wide_heads(model: Any) -> int:
    """Has the language model take torch's other attention where its heads are too wide for cuDNN's.

    The vision tower keeps cuDNN's: at Gemma 3's 4,096 patches of 72 channels it takes 6.8 ms a layer, forward and back,
    where the next takes 10.9 (H200).

    Args:
        model: A transformers or peft model, before anything of it is compiled.

    Returns:
        Channels of a head, or 0 where nothing changes.
    """
    text = base_of(model).config.get_text_config()
    channels = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    if channels <= _MOST_CHANNELS or not takes_cudnn(model):
        return 0
    _register()
    text._attn_implementation = IMPLEMENTATION
    return channels


def takes_cudnn(model: Any) -> bool:
    """Whether torch takes cuDNN's attention by itself for a language model.

    Args:
        model: A transformers or peft model.
    """
    device = next(model.parameters()).device
    if base_of(model).config.get_text_config()._attn_implementation != "sdpa":
        return False
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return capability >= _HOPPER


def _register() -> None:
    """Makes the function known to transformers, under `IMPLEMENTATION`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _attend(module: torch.nn.Module, *states: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Transformers' own function around torch's attention, which is kept from cuDNN's; compiled layers trace both."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with sdpa_kernel(_OTHERS):
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(module, *states, **options)
    return attended
