"""Rows one after the other instead of side by side: a batch without padding.

The Qwen families take it: their positions say where a row begins, and attention stays within rows
(`vlmtrain.speed.attention`). Gemma 3 attends both ways within pictures and Mllama across to them; they stay padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlmtrain.loaded import base_of
from vlmtrain.masks import IGNORE_INDEX

__all__ = ["PackedCollator", "can_pack", "is_packed", "pack", "row_bounds"]

Batch = dict[str, Any]
PositionIds = Callable[[Batch], torch.Tensor]

_PACKABLE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_BY_TOKEN = ("input_ids", "labels", "mm_token_type_ids")


def can_pack(model_type: str) -> bool:
    """Whether rows of models of this type can be packed."""
    return model_type in _PACKABLE


def pack(batch: Batch, positions: torch.Tensor) -> Batch:
    """Joins the rows of a padded batch.

    Args:
        batch: `input_ids`, `attention_mask`, `labels` and `mm_token_type_ids`, all `(B, S)`; other tensors pass.
        positions: `(3, B, S)` the rows' positions in time, height and width.

    Returns:
        The same with `(1, T)` tokens, T those that are no padding, `position_ids` `(4, 1, T)` whose first row counts
        the tokens of each row from 0, and no `attention_mask`.
    """
    kept = batch["attention_mask"].bool()
    counts = kept.sum(dim=1)
    packed = {key: value for key, value in batch.items() if key != "attention_mask"}
    for key in _BY_TOKEN:
        if key in batch:
            packed[key] = batch[key][kept][None]
    # The last token of a row must not be asked for the first of the next.
    packed["labels"][0, counts.cumsum(0)[:-1]] = IGNORE_INDEX
    in_row = torch.cat([torch.arange(count) for count in counts.tolist()])
    packed["position_ids"] = torch.cat([in_row[None], positions[:, kept]])[:, None]
    return packed


def is_packed(batch: Batch) -> bool:
    """Whether a batch came from `pack`: only its positions count the tokens of each row as well."""
    positions = batch.get("position_ids")
    return positions is not None and positions.ndim == 3 and len(positions) == 4


def row_bounds(positions: torch.Tensor) -> torch.Tensor:
    """Where the rows of a packed batch lie in it.

    Args:
        positions: `(4, 1, T)` `position_ids` of the batch, or the first row of them alone.

    Returns:
        `(B + 1,)` int64: the first token of each row, and the number of all.
    """
    in_row = (positions[0] if positions.ndim == 3 else positions).flatten()
    return torch.cat([(in_row == 0).nonzero().flatten(), torch.tensor([len(in_row)], device=in_row.device)])


class PackedCollator:
    """Another collator's batches, packed.

    Args:
        collate: Rows to a padded batch.
        model: Of a family that can be packed; asked for positions alone, never for weights.
    """

    def __init__(self, collate: Callable[[list[Batch]], Batch], model: Any) -> None:
        self.collate = collate
        self._inner = base_of(model).model

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """Collates rows; see `pack`."""
        batch = dict(self.collate(list(rows)))
        positions, _ = self._inner.get_rope_index(
            batch["input_ids"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch.get("image_grid_thw"),
            attention_mask=batch["attention_mask"],
        )
        return pack(batch, positions)
