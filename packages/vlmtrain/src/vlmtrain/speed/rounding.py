"""Lengths of padded batches rounded up, so that the GPU meets few different ones, and none that are known to go wrong.

On GPUs of compute capability 9.0 and above torch prefers cuDNN's attention, which makes a plan for each length it has
not met: 0.1 s, forward and backward, and a few times in a process seconds (benchmarks/README.md). Padded batches have
hundreds of lengths; rounded up, by 1/32 as a rule, there are at most 32 between a length and its double.

Lengths that leave 64 over 128 are passed over: with a mask, cuDNN's gradients of queries are no numbers there where all
scores of a query are far below zero, as some heads of real models have them (pytorch's issue 196678, torch 2.11 on).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlmtrain.masks import IGNORE_INDEX

__all__ = ["RoundingCollator", "pad_tokens", "prefers_cudnn", "round_up"]

Batch = dict[str, Any]

_BITS = 6
_TILE = 128
_HOPPER = (9, 0)
_FILLINGS = {
    **{"attention_mask": 0, "labels": IGNORE_INDEX, "token_type_ids": 0, "mm_token_type_ids": 0},
    "cross_attention_mask": 0,
}


def prefers_cudnn(device: torch.device) -> bool:
    """Whether torch takes cuDNN's attention there by itself."""
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    capability: tuple[int, int] = torch.cuda.get_device_capability(device)
    return capability >= _HOPPER


def round_up(length: int) -> int:
    """The next number whose binary digits are 0 from the seventh on, and which does not leave 64 over 128.

    37 stays, 300 becomes 304, and 315, past 320, becomes 328.
    """
    step = 1 << max(0, length.bit_length() - _BITS)
    rounded = -(-length // step) * step
    return rounded + step if rounded % _TILE == _TILE // 2 else rounded


def pad_tokens(batch: Batch, more: int, pad_token_id: int) -> Batch:
    """Pads a padded batch further, on the right.

    Args:
        batch: `(B, S)` tensors of tokens, and perhaps the `(B, S, N, T)` mask from tokens to tiles of pictures; other
            tensors pass.
        more: Tokens for each row.
        pad_token_id: What the tokenizer pads with.
    """
    batch, fillings = dict(batch), {"input_ids": pad_token_id, **_FILLINGS}
    for name, filling in fillings.items():
        if more and name in batch:
            tensor = batch[name]
            added = tensor.new_full((tensor.shape[0], more, *tensor.shape[2:]), filling)
            batch[name] = torch.cat([tensor, added], dim=1)
    return batch


class RoundingCollator:
    """Another collator's batches, padded on the right to a rounded length.

    Args:
        collate: Rows to a padded batch.
        pad_token_id: What the tokenizer pads with.
    """

    def __init__(self, collate: Callable[[list[Batch]], Batch], pad_token_id: int) -> None:
        self.collate = collate
        self._pad_token_id = pad_token_id

    def __call__(self, rows: list[Batch]) -> Batch:
        """Collates rows; see `pad_tokens`."""
        batch = self.collate(rows)
        length = batch["input_ids"].shape[1]
        return pad_tokens(batch, round_up(length) - length, self._pad_token_id)
