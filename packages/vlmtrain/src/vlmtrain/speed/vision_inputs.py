"""What a Qwen vision tower derives from the pictures' grids, computed beside the rows instead of on the GPU.

Left to itself the tower reads the grids back from the GPU and loops over them, while the GPU waits. transformers lets
the caller pass the results (`image_position_ids` and the like); the loader's processes have the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlmtrain.speed.attention import upper_bound

__all__ = ["VisionInputs"]

Batch = dict[str, Any]


class VisionInputs:
    """Adds to a batch what the tower would compute from `image_grid_thw`.

    Args:
        collate: Rows to a batch with `image_grid_thw` `(N, 3)`, if there are pictures.
        vision_config: The model's, of one of the Qwen families.
    """

    def __init__(self, collate: Callable[[list[Batch]], Batch], vision_config: Any) -> None:
        self.collate = collate
        self._config = vision_config

    def __call__(self, rows: list[Batch]) -> Batch:
        """Collates rows; see `add`."""
        return self.add(self.collate(rows))

    def add(self, batch: Batch) -> Batch:
        """Completes a batch, which may be a part of one.

        Args:
            batch: As collated.

        Returns:
            The batch with `image_position_ids`, `image_cu_seqlens`, `image_max_seqlen`, and for Qwen2.5-VL the order
            and boundaries of its windows.
        """
        from transformers import vision_utils

        batch = dict(batch)
        grid = batch.get("image_grid_thw")
        if grid is None or not len(grid):
            return batch
        merge = self._config.spatial_merge_size
        batch["image_position_ids"] = vision_utils.get_vision_position_ids(grid, merge)
        batch["image_cu_seqlens"] = boundaries = vision_utils.get_vision_cu_seqlens(grid)
        batch["image_max_seqlen"] = _longest(boundaries)
        window_px = getattr(self._config, "window_size", None)
        if window_px:
            order, boundaries = vision_utils.get_vision_window_index(grid, merge, window_px, self._config.patch_size)
            batch |= {
                "image_window_index": order,
                "image_cu_window_seqlens": boundaries,
                "image_max_window_seqlen": _longest(boundaries),
            }
        return batch


def _longest(boundaries: torch.Tensor) -> int:
    return upper_bound(int(boundaries.diff().max()))
