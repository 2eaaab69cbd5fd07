"""Attention of the Qwen vision towers, with queries, keys and values left where the projection wrote them.

transformers moves the three of a token apart, into three tensors of all tokens each. On the way back their gradients
are stacked and moved together again: a pass over memory more, and in a compiled block a kernel that takes ten times
as long as its bytes do. The variable-length kernel takes them as they lie, and so do the kernels for windows.
Attention implementations are given the three tensors; so this is put in the place of the layer's `forward`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from vlmtrain.loaded import base_of
from vlmtrain.speed.window_attention import LONGEST_WINDOW, attend_in_windows

__all__ = ["attend_in_place"]


def attend_in_place(model: Any, attend: Callable[..., tuple[torch.Tensor, None]], *, in_windows: bool) -> int:
    """Replaces the forward passes of a tower's attention layers.

    Args:
        model: A transformers or peft model of one of the Qwen families.
        attend: An attention function as transformers registers them, for rows of sequences.
        in_windows: Whether sequences of up to `LONGEST_WINDOW` tokens go to the kernels for windows instead.

    Returns:
        How many layers.
    """
    layers = [module for module in base_of(model).modules() if type(module).__name__.endswith("VisionAttention")]
    for layer in layers:
        rotate = type(layer).forward.__globals__["apply_rotary_pos_emb_vision"]
        layer.forward = types.MethodType(_make_forward(rotate, attend, in_windows=in_windows), layer)
    return len(layers)


def _make_forward(
    rotate: Callable[..., Any], attend: Callable[..., tuple[torch.Tensor, None]], *, in_windows: bool
) -> Callable[..., Any]:
    def forward(
        layer: Any,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        max_seqlen: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        tokens = hidden_states.shape[0]
        states = layer.qkv(hidden_states).view(tokens, 3, layer.num_heads, -1)
        if in_windows and max_seqlen is not None and max_seqlen <= LONGEST_WINDOW:
            out = attend_in_windows(states, *position_embeddings, cu_seqlens, layer.scaling)
        else:
            query, key, value = states.unbind(1)
            query, key = rotate(query, key, *position_embeddings)
            out, _weights = attend(
                layer,
                *(each.transpose(0, 1)[None] for each in (query, key, value)),
                None,
                scaling=layer.scaling,
                is_causal=False,
                cu_seq_lens_q=cu_seqlens,
                max_length_q=max_seqlen,
            )
        projected: torch.Tensor = layer.proj(out.reshape(tokens, -1))
        return projected

    return forward
