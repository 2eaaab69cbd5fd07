"""Rows of a split to one padded batch with labels: the collator of the `transformers` backend.

The `unsloth` backend uses Unsloth's own collator; a contract test holds the two to the same tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlmtrain.chat import ChatFormat
from vlmtrain.masks import mask_labels

__all__ = ["VisionCollator"]


class VisionCollator:
    """Renders, tokenises and masks rows; pictures go to the image processor as stored, never resized here.

    Args:
        chat: The processor and its mask rules.
        dtype: What pixel values are cast to: the model's.
        last_turn_only: Learn the last answer of each conversation only.
    """

    def __init__(self, chat: ChatFormat, *, dtype: torch.dtype, last_turn_only: bool = False) -> None:
        self.chat = chat
        self.dtype = dtype
        self.last_turn_only = last_turn_only

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collates rows.

        Args:
            rows: `{messages, images}` with images as RGB PIL pictures.

        Returns:
            `input_ids`, `attention_mask`, `labels`, all `(B, S)` int64, with what the processor adds (`pixel_values`,
            grids, token types).
        """
        arguments: dict[str, Any] = {
            "text": [self.chat.render(row["messages"]) for row in rows],
            "padding": True,
            # The template has written the beginning of the sequence already.
            "add_special_tokens": False,
            "return_tensors": "pt",
        }
        images = [list(row["images"]) for row in rows]
        if any(images):
            arguments["images"] = images
        batch: dict[str, torch.Tensor] = dict(self.chat.processor(**arguments))
        batch["labels"] = torch.tensor(
            [
                mask_labels(ids, self.chat.rules, last_turn_only=self.last_turn_only)
                for ids in batch["input_ids"].tolist()
            ]
        )
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(self.dtype)
        return batch
